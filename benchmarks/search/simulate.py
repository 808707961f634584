"""Nodes that do not exist, in simulated time: each trains one repeat at a time, whose curve is known."""

import heapq
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from benchmarks.search.curves import Constrained, Curve, SeveralObjectives, Surface, Values, regret

NODES = 10
STEP = 20.0
"""GPU-hours between two questions for the recommendation."""

Decision = Literal["continue", "stop", "pause"]


@dataclass(frozen=True)
class Task:
    """A repeat to train: of these values, with this seed, on from `trained` kimg; `key` is the method's own."""

    key: Any
    values: Values
    seed: int
    trained: float = 0.0

    @property
    def recipe(self) -> str:
        """What tells its recipe from others."""
        return repr(sorted(self.values.items()))


@dataclass(frozen=True)
class Statement:
    """What a method says of the recipe that it recommends: its mean score, with an interval, and of its rivals."""

    mean: float
    low: float
    high: float
    best: float
    """Probability that it is the best of the raced."""
    near: float
    """Probability that it is within 2% of the best of the raced."""
    alone: bool
    """Whether it stands alone, rather than as one of several that cannot be told apart."""
    raced: Sequence[tuple[Values, int]]
    """The recipes that were compared over fresh seeds, the recommended one first, and how many seeds each got."""


class Method(Protocol):
    """A search method, as the simulator talks to it."""

    def propose(self) -> Task | None:
        """Return a repeat for a free node; none if there is nothing to train now."""
        ...

    def report(self, task: Task, kimg: float, score: float, hours: float, **others: float) -> Decision:
        """Take a score at a rung, and the GPU-hours that the repeat has cost; decide whether it continues.

        `others` are the numbers of further objectives and of constraints.
        """
        ...

    def end(self, task: Task, failure: str) -> None:
        """Take that a repeat has ended by itself: at the last rung, or with a failure."""
        ...

    def recommend(self) -> Values | None:
        """Return the recipe that it would recommend now."""
        ...

    def front(self) -> Sequence[Values]:
        """Return the Pareto front that it would recommend now, of several objectives."""
        ...

    def statement(self) -> Statement | None:
        """Return what it says of that recipe, if it says more than one number."""
        ...


@dataclass
class Outcome:
    """What came of a method on a surface."""

    hours: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    """True regret of what was recommended after these GPU-hours."""
    violations: list[float] = field(default_factory=list)
    """By which share of the limits what was recommended then truly breaks the constraints."""
    volumes: list[float] = field(default_factory=list)
    """Of several objectives, in place of regrets: the true hypervolume of the recommended front, as a share of the
    best."""
    stated: tuple[float, float, float] | None = None
    """Mean, low and high end of the interval that the method states for what it recommends in the end."""
    best: float | None = None
    """Stated probability that this recipe is the best of the raced; `near`: within 2% of it."""
    near: float | None = None
    alone: bool | None = None
    raced: list[tuple[float, int]] = field(default_factory=list)
    """Of each recipe that was compared over fresh seeds, the recommended one first: its true score, and its seeds."""
    truth: float = math.nan
    """The true score of what is recommended in the end."""
    final_regret: float = math.nan
    trials: int = 0
    repeats: int = 0
    finished: int = 0
    """Repeats that were trained to the last rung."""
    failed: int = 0
    elapsed: float = 0.0
    """Simulated hours."""
    spent: float = 0.0
    """GPU-hours."""
    infeasible: float | None = None
    """GPU-hours of recipes that truly break the constraints."""
    idle: float = 0.0
    """Share of the nodes' time in which they had nothing to do, until the last repeat began."""
    driver_seconds: float = 0.0
    """CPU time of the method's own work."""


@dataclass
class _Running:
    task: Task
    curve: Curve
    rungs: Iterator[float]
    trained: float
    began: float
    hours: float = 0.0
    """GPU-hours that the repeat had cost before it was paused."""


class Simulation:
    """A method on a surface.

    It ends when the method has no more repeats, or `limit` GPU-hours are spent: by default the surface's horizon, up to
    which recommendations are judged after every `step` GPU-hours.
    """

    def __init__(
        self,
        method: Method,
        surface: Surface,
        nodes: int = NODES,
        step: float = STEP,
        limit: float | None = None,
    ) -> None:
        self._method = method
        self._surface = surface
        self._nodes = nodes
        self._step = step
        self._limit = surface.horizon if limit is None else limit
        self._rungs = surface.space.budget.rungs_kimg
        self._events: list[tuple[float, int, float, _Running]] = []
        self._order = itertools.count()
        self._paused: dict[tuple[str, int], float] = {}
        self._recipes: set[str] = set()
        self._now = 0.0
        self._idle = 0.0
        self._in_vain = 0
        """Nodes that train recipes that break the constraints."""
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Simulate until the end."""
        self._fill_nodes()
        while self._events:
            when, _, kimg, running = heapq.heappop(self._events)
            if not self._advance(when, busy=len(self._events) + 1):
                break
            if self._pass_mark(running, kimg):
                self._push_next_mark(running)
            else:
                self._in_vain -= self._breaks_constraints(running.task.values)
            self._fill_nodes()
        else:
            self._advance(math.inf, busy=1)  # nothing changes any more
        self._conclude()
        return self.outcome

    def _fill_nodes(self) -> None:
        while len(self._events) < self._nodes:
            task = self._timed(self._method.propose)
            if task is None:
                return
            self._start(task)

    def _start(self, task: Task) -> None:
        outcome = self.outcome
        outcome.idle = self._idle
        outcome.elapsed = self._now
        hours = self._paused.pop((task.recipe, task.seed), 0.0)
        outcome.repeats += task.trained == 0
        self._recipes.add(task.recipe)
        self._in_vain += self._breaks_constraints(task.values)
        curve = self._surface.train(task.values, task.seed)
        rungs = iter([rung for rung in self._rungs if rung > task.trained])
        self._push_next_mark(_Running(task, curve, rungs, task.trained, self._now, hours))

    def _push_next_mark(self, running: _Running) -> None:
        """Enter when a repeat reaches its next rung, or fails before it."""
        kimg = min(next(running.rungs), running.curve.fails_at)
        training = (kimg - running.trained) * running.curve.hours_per_kimg
        when = self._now + training + running.curve.hours_per_score.get(kimg, 0.0)
        heapq.heappush(self._events, (when, next(self._order), kimg, running))

    def _pass_mark(self, running: _Running, kimg: float) -> bool:
        """Tell the method what a repeat has reached; return whether it continues."""
        outcome = self.outcome
        running.trained = kimg
        curve = running.curve
        score = curve.scores.get(kimg, math.nan)
        if math.isnan(score):
            outcome.failed += 1
            self._timed(self._method.end, running.task, "Diverged: the loss is not finite")
            return False

        hours = running.hours + self._now - running.began
        others = {name: numbers[kimg] for name, numbers in curve.others.items()}
        decision = self._timed(self._method.report, running.task, kimg, score, hours, **others)
        if kimg == self._rungs[-1]:
            outcome.finished += 1
            self._timed(self._method.end, running.task, "")
            return False
        if decision == "pause":
            self._paused[running.task.recipe, running.task.seed] = hours
        return decision == "continue"

    def _advance(self, when: float, busy: int) -> bool:
        """Let time pass; ask for the recommendation at each step; return whether the limit allows all of that."""
        outcome = self.outcome
        spent = outcome.spent + busy * (when - self._now)
        due = self._step * (len(outcome.hours) + 1)
        while due <= min(spent, self._surface.horizon):
            outcome.hours.append(due)
            self._judge()
            due += self._step
        if math.isinf(when):
            return False

        end = min(when, self._now + (self._limit - outcome.spent) / busy)
        self._idle += (self._nodes - busy) * (end - self._now)
        outcome.spent += busy * (end - self._now)
        if isinstance(self._surface, Constrained):
            outcome.infeasible = (outcome.infeasible or 0.0) + self._in_vain * (end - self._now)
        self._now = end
        if end < when:
            outcome.idle = self._idle
            outcome.elapsed = end
        return end == when

    def _judge(self) -> None:
        """Ask for the recommendation, and write down how good it truly is."""
        outcome = self.outcome
        if isinstance(self._surface, SeveralObjectives):
            outcome.volumes.append(self._surface.volume(self._timed(self._method.front)))
            return

        recommended = self._timed(self._method.recommend)
        outcome.regrets.append(regret(self._surface, recommended))
        if isinstance(self._surface, Constrained):
            broken = math.nan if recommended is None else self._surface.violation(recommended)
            outcome.violations.append(broken)

    def _breaks_constraints(self, values: Values) -> bool:
        return isinstance(self._surface, Constrained) and self._surface.violation(values) > 0

    def _conclude(self) -> None:
        outcome = self.outcome
        outcome.trials = len(self._recipes)
        outcome.idle /= self._nodes * outcome.elapsed or 1
        outcome.elapsed = self._now
        if isinstance(self._surface, SeveralObjectives):
            return
        recommended = self._method.recommend()
        statement = self._method.statement()
        if statement is not None:
            outcome.stated = (statement.mean, statement.low, statement.high)
            outcome.best = statement.best
            outcome.near = statement.near
            outcome.alone = statement.alone
            outcome.raced = [(self._surface.truth(values), seeds) for values, seeds in statement.raced]
        if recommended is not None:
            outcome.truth = self._surface.truth(recommended)
            outcome.final_regret = regret(self._surface, recommended)

    def _timed(self, ask: Any, *arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        answer = ask(*arguments, **named)
        self.outcome.driver_seconds += time.process_time() - began
        return answer
