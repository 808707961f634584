"""What another method would have done on a finished sweep's curves: its search, replayed without training.

The method proposes as in a sweep; instead of its proposal it gets the nearest recipe that the sweep trained and that it
has not had yet. It sees the recorded scores, rung by rung, pays the recorded device-hours, and trains one repeat at a
time. A repeat that it continues beyond the end of the record pays estimated hours and shows no score.

The race is not replayed. Of some recorded trials, the leaders are again the leaders of any search that has trained them
to the end, and every method would pay the same for a race.
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scrimp_platform.search import curves, halving, proposals, race, recording
from scrimp_platform.search.curves import Curves
from scrimp_platform.search.encoding import Encoding
from scrimp_platform.search.halving import Rung
from scrimp_platform.search.order import Rank
from scrimp_platform.search.recording import Recording
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.verdict import judge
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError


@dataclass(frozen=True)
class Method:
    """Who proposes, as `proposals` of a space names it, and whether halving stops trials at the rungs."""

    proposals: str
    halves: bool


METHODS = {
    "scrimp": Method("curves", halves=True),
    "halving": Method("random", halves=True),
    "random": Method("random", halves=False),
    "qmc": Method("qmc", halves=False),
    "tpe": Method("tpe", halves=False),
    "tpe-halving": Method("tpe", halves=True),
    "gp": Method("gp", halves=False),
}
ROUNDING = 1e-9
"""Of sums of hours: a search that retraces the sweep spends exactly its hours."""
USUAL = ("scrimp", "halving", "random", "tpe")


@dataclass(frozen=True)
class Replayed:
    """What came of one method.

    Attributes
    ----------
    method : str
        Its name.
    found : int
        In how many seeds it has trained a good recipe to the end within the device-hours of the sweep's own search.
    hours, recipes : float
        Medians over the seeds of the device-hours until then and of the recipes begun; infinite if most never do.
    estimated : float
        Mean share of what it spends within the hours of the sweep's own search that is estimated and not recorded.
    recommended : dict
        How many seeds recommend each trial at the end of these hours, the most frequent one first. The race is that of
        the recorded fresh seeds; None counts the seeds whose leaders have none.
    hours_by_seed : tuple of float
        The device-hours of each seed until a good recipe is trained to the end; infinite if it never is.
    """

    method: str
    found: int
    hours: float
    recipes: float
    estimated: float
    recommended: dict[int | None, int]
    hours_by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Replay:
    """What the sweep did, and what each method would have done."""

    recording: Recording
    methods: tuple[Replayed, ...]

    @property
    def limits(self) -> tuple[str, ...]:
        """What this sweep's records cannot tell, a line each."""
        sweep = self.recording
        raced = sum(map(sweep.raced, sweep.trials))
        lines = [
            "methods choose among the sweep's own recipes, the good ones included: in the whole space they may "
            "find one later",
            f"only the {raced} recipes with fresh seeds can count as good: where others are, they may find one sooner",
        ]
        stopped = len(sweep.trials) - sweep.scored
        if stopped:
            lines.append(
                f"{stopped} of {len(sweep.trials)} recipes have no score at the last rung: the hours to train them to "
                "the end are estimated, and what they would score is not known"
            )
        return tuple(lines)


def replay(
    folder: SweepFolder,
    methods: Sequence[str] = USUAL,
    seeds: int = 10,
    progress: Callable[[float, float], None] | None = None,
) -> Replay:
    """Replay the search of a finished sweep with each method and so many seeds.

    They follow that of the sweep, with which its own method would only repeat what it did.

    Raises
    ------
    UserError
        If a method does not exist, or the sweep cannot be replayed.
    """
    for name in methods:
        if name not in METHODS:
            raise UserError(f"--method {name}: no such method; there are {', '.join(METHODS)}")
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")

    sweep = recording.read(folder)
    replayed: list[Replayed] = []
    for place, name in enumerate(methods):
        searches: list[Search] = []
        for count in range(1, seeds + 1):
            searches.append(Search(sweep, METHODS[name], sweep.seed + count))
            searches[-1].run()
            if progress:
                progress(place * seeds + count, len(methods) * seeds)
        replayed.append(_summary(name, searches))
    return Replay(sweep, tuple(replayed))


def _summary(name: str, searches: Sequence["Search"]) -> Replayed:
    hours = tuple(search.found_hours for search in searches)
    recommended = Counter(search.recommended for search in searches)
    return Replayed(
        method=name,
        found=sum(search.in_time for search in searches),
        hours=statistics.median(hours),
        recipes=statistics.median(search.found_trials for search in searches),
        estimated=statistics.fmean(search.estimated for search in searches),
        recommended=dict(recommended.most_common()),
        hours_by_seed=hours,
    )


class Search:
    """One method with one seed on a recording. It decides by the rules of the ledger, one repeat at a time.

    Attributes
    ----------
    trials : list of Trial
        Those that it has begun, in order, with what it knows of them; the numbers are the sweep's.
    hours : float
        Device-hours spent so far.
    found_hours, found_trials : float
        The hours and the number of trials when a good recipe was first trained to the end; infinite until then.
    estimated, recommended : float, int or None
        At the hours of the sweep's own search: the share of the hours that is estimated, and what a race of the leaders
        over the recorded seeds recommends; None if no leader has any.
    """

    def __init__(self, sweep: Recording, method: Method, seed: int) -> None:
        self.trials: list[Trial] = []
        self.hours = 0.0
        self.found_hours = self.found_trials = math.inf
        self.estimated = 0.0
        self.recommended: int | None = None
        self._sweep = sweep
        self._limit = sweep.search_hours * (1 + ROUNDING)
        self._space = as_searched(sweep.space, method)
        self._seed = seed
        self._estimated_hours = 0.0
        self._is_judged = False
        self._curves: Curves | None = None

        # Of equally near recipes the first here is taken, so none is preferred for its number.
        self._unused = list(sweep.trials.values())
        random.Random(seed).shuffle(self._unused)
        self._encoding = Encoding(sweep.space)

    @property
    def in_time(self) -> bool:
        """Whether a good recipe was trained to the end within the hours of the sweep's own search."""
        return self.found_hours <= self._limit

    def run(self) -> None:
        """Search until a good recipe is found and the sweep's hours are spent, or nothing is left to train."""
        while self.found_hours == math.inf or self.hours < self._sweep.search_hours:
            trial = self._promoted() or self._new()
            if trial is None:
                break
            self._train(trial)
        self._judge()

    def _promoted(self) -> Trial | None:
        """Return a paused trial that may continue now, from the highest rung on; give up those that never will."""
        for rung in self._rungs():
            for trial in rung.hopeless(rung.places):
                trial.status = "pruned"
        for rung in reversed(self._rungs()):
            trial = rung.promotable()
            if trial and trial.status == "paused":
                trial.repeats[0].passed = rung.kimg
                trial.status = "running"
                return trial
        return None

    def _new(self) -> Trial | None:
        """Begin the unused recipe that is nearest to what the method proposes."""
        if not self._unused:
            return None
        proposed = proposals.propose(self.trials, self._space, self._seed, curves=self._learned())
        shares = self._encoding.shares([proposed, *(trial.params for trial in self._unused)])
        points = self._encoding.points(shares)
        distances = np.linalg.norm(points[1:] - points[0], axis=1)
        recorded = self._unused.pop(int(np.argmin(distances.round(9))))

        repeat = Repeat(recorded.number, 0, recorded.repeats[0].seed, "search")
        self.trials.append(Trial(recorded.number, recorded.params, "running", [repeat]))
        return self.trials[-1]

    def _train(self, trial: Trial) -> None:
        """Train a trial from rung to rung until it ends, or has to wait."""
        repeat = trial.repeats[0]
        for kimg in self._space.budget.rungs_kimg:
            if kimg <= repeat.passed:
                continue
            self._reach(trial, kimg)
            if trial.status != "running":
                return
            rung = next(rung for rung in self._rungs() if rung.kimg == kimg)
            if rung.promotable() is not trial:
                trial.status = "paused"
                return
            repeat.passed = kimg

    def _reach(self, trial: Trial, kimg: float) -> None:
        """Pay for a trial's training to a rung and show what it scored there; end it where the record does."""
        repeat = trial.repeats[0]
        recorded = self._sweep.trials[trial.number]
        first = recorded.repeats[0]
        cost = recording.hours(first, kimg)
        if repeat.passed:
            cost -= recording.hours(first, repeat.passed)
        if self.hours + cost > self._limit:
            self._judge()

        self.hours += cost
        self._estimated_hours += max(0.0, recording.hours(first, kimg) - first.device_hours)
        repeat.rungs = {rung: row for rung, row in first.rungs.items() if rung <= kimg}
        if kimg not in recorded.scored_rungs(self._space):
            trial.status = "failed" if first.status == "failed" else "pruned"
        elif kimg == self._space.budget.rungs_kimg[-1]:
            trial.status = "complete"
            if trial.number in self._sweep.good and self.found_hours == math.inf:
                self.found_hours = self.hours
                self.found_trials = len(self.trials)

    def _judge(self) -> None:
        """Take what the method recommends now, unless that was done."""
        if self._is_judged:
            return
        self._is_judged = True
        self.estimated = self._estimated_hours / self.hours if self.hours else 0.0
        leaders = race.leaders(self.trials, self._space, self._ranks())
        verdict = judge(
            [self._sweep.trials[trial.number] for trial in leaders if self._sweep.raced(trial.number)], self._space
        )
        self.recommended = verdict.recommended if verdict else None

    def _rungs(self) -> list[Rung]:
        return halving.rungs(self.trials, self._space, len(self._unused), self._ranks())

    def _learned(self) -> Curves | None:
        if self._space.proposals == "curves":
            self._curves = curves.learn(self.trials, self._space, self._curves)
        return self._curves

    def _ranks(self) -> Mapping[int, Rank] | None:
        learned = self._learned()
        return learned.ranks if learned else None


def as_searched(space: Space, method: Method) -> Space:
    """Return the space as a method searches it; without halving the last rung is the only one."""
    rungs = space.budget.rungs_kimg if method.halves else space.budget.rungs_kimg[-1:]
    budget = space.budget.model_copy(update={"rungs_kimg": rungs})
    return space.model_copy(update={"proposals": method.proposals, "budget": budget})
