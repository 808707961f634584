"""What the sweep has decided and what it decides next, on disk before anyone acts on it.

The ledger knows nothing of Ray, which calls `propose`, `report` and `finish`. It is rebuilt from the sweep's folder, so
a new driver resumes where a killed one stopped.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from scrimp_platform.search import feasibility, halving, proposals, race, records
from scrimp_platform.search.learner import Learner
from scrimp_platform.search.order import Rank
from scrimp_platform.search.record_writer import RecordWriter
from scrimp_platform.search.records import Preparation, Repeat, Trial
from scrimp_platform.search.same_failures import SameFailures
from scrimp_platform.search.study import Study
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder, WorkFolder
from scrimp_platform.throttle import Throttle
from scrimp_spaces.space import Space
from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.metrics_log import MetricsRow
from scrimp_trainers.recipe.needs import Need, needs
from scrimp_trainers.recipe.recipe import Recipe

Say = Callable[[str], None]

MIN_TRIALS_TO_COME = 10
"""At the begin of a sweep that only GPU-hours limit."""
MAX_HELD = 10
"""Repeats that wait for a reference or proxy while others are looked for: what is proposed now knows little."""
MAX_PROPOSALS_PER_TRIAL = 10
"""The search ends early if nearly all proposals of a space contradict themselves or break a constraint."""


class Ledger:
    """The trials and repeats of one sweep.

    Parameters
    ----------
    folder : SweepFolder
        The sweep's files.
    space : Space
        What is searched, and the budget.
    seed : int
        Seed of the proposals and of every repeat.
    devices : float
        Devices that one repeat takes.
    say : Callable
        Called with each decision, in one line.
    warm_start : WarmStart, optional
        What the sweep was given of earlier ones: the first trials, and a prior of the curve model.
    known_costs : Callable, optional
        Returns those costs of a recipe, by name, that constraints limit and that are known before training.
    """

    def __init__(
        self,
        folder: SweepFolder,
        space: Space,
        seed: int,
        devices: float,
        say: Say,
        warm_start: WarmStart | None = None,
        known_costs: Callable[[Recipe], dict[str, float]] | None = None,
    ) -> None:
        self.folder = folder
        self.space = space
        self.say = say
        self._seed = seed
        self._devices = devices
        self._warm_start = warm_start or WarmStart()
        self._known_costs = known_costs
        self._base = space.base()

        self._writer = RecordWriter(folder, say)
        self._learner = Learner(space, self._warm_start, say)
        self._same_failures = SameFailures()
        self._throttle = Throttle()
        self._needs: dict[tuple[int, int], list[Need]] = {}
        self._gave_up = False

        known = records.read_records(folder)
        self.trials = known.trials
        self.preparations = {preparation.name: preparation for preparation in known.preparations}
        self._proposals = sorted([*known.trials, *known.skipped], key=lambda trial: trial.number)
        for problem in known.problems:
            say(problem)
        self._study = Study(folder.journal, space, say)
        self._recover()

    @property
    def repeats(self) -> list[Repeat]:
        """Every repeat, in order of its trial."""
        return [repeat for trial in self.trials for repeat in trial.repeats]

    @property
    def running(self) -> list[Repeat]:
        """Repeats that were handed out and have not ended."""
        return [repeat for repeat in self.repeats if repeat.status == "running"]

    @property
    def device_hours(self) -> float:
        """Device-hours that the sweep has spent so far."""
        return sum(work.device_hours for work in [*self.repeats, *self.preparations.values()])

    @property
    def in_vain(self) -> bool:
        """Whether the sweep has no result: no trial was started, all failed, or too many failed for the same cause."""
        return self._same_failures.too_many or all(trial.status == "failed" for trial in self.trials)

    def exhausted(self) -> str:
        """Return which limit has been reached; empty while there is none."""
        limit = self.space.budget.max_gpu_hours
        if limit is not None and self.device_hours >= limit:
            return f"max_gpu_hours {limit:g} reached"
        if self._same_failures.too_many:
            return self._same_failures.text()
        return ""

    def propose(self) -> Repeat | Preparation | None:
        """Decide on the next repeat and hand it out: an interrupted one, a promoted one, a new trial's, or the race's.

        A reference or proxy that it needs is handed out in its place, once for all repeats that need it; meanwhile
        these are held, and others handed out. None means that nothing can be decided now; if nothing runs either, the
        sweep is complete.
        """
        work = self._next()
        if work:
            work.status = "running"
            work.started = time.time()
            work.began = None
            self._writer.save(work)
        if isinstance(work, Repeat):
            self._update_status(work)
        return work

    def _next(self) -> Repeat | Preparation | None:
        held = 0
        for repeat in self._unfinished():
            work = self._first_for(repeat)
            if work is repeat:
                self.say(f"{'resuming' if repeat.started else 'training'} repeat {self._label(repeat)}")
            if work:
                return work
            held += repeat.open

        while held < MAX_HELD:
            repeat = self._search() or self._race()
            work = self._first_for(repeat) if repeat else None
            if work or not repeat or self.exhausted():
                return work
            held += repeat.open
        return None

    def _first_for(self, repeat: Repeat) -> Repeat | Preparation | None:
        """Return what is to be handed out for a repeat: itself, or the first training that it needs and lacks.

        None if that one runs; or if it failed, and with it the repeat.
        """
        for need in self._needs_of(repeat):
            preparation = self.preparations.get(need.name) or self._prepare(need, repeat)
            if preparation.status == "waiting":
                return preparation
            if preparation.status == "running":
                return None
            if preparation.status == "failed":
                self._close(repeat, "failed", f"{need.name} failed: {preparation.cause}")
                return None
        return repeat

    def _needs_of(self, repeat: Repeat) -> list[Need]:
        numbers = repeat.trial, repeat.repeat
        if numbers not in self._needs:
            self._needs[numbers] = needs(self._base.replace(self._trial(repeat).params), repeat.seed)
        return self._needs[numbers]

    def _prepare(self, need: Need, repeat: Repeat) -> Preparation:
        """Record a training that a repeat needs."""
        preparation = Preparation(need.name, need.kind, need.kimg, repeat.seed, devices=self._devices)
        self._writer.write_recipe(preparation, self._base.replace(self._trial(repeat).params).to_yaml())
        self._writer.save(preparation)
        self.preparations[need.name] = preparation
        self.say(f"starting {need.name} of {need.kimg:g} kimg, which repeat {self._label(repeat)} needs")
        return preparation

    def report(self, repeat: Repeat, row: MetricsRow) -> bool:
        """Record a repeat's scores at a rung and decide whether it continues; a second report changes nothing."""
        rung = row.rung
        if rung is None:  # nothing is decided between rungs
            return True
        repeat.rungs[rung] = row
        # A missing score says nothing about the trial's rank: `finish` will fail it.
        if repeat.phase == "race" or rung <= repeat.passed or not self._scored(repeat, rung):
            return True

        first_objective = next(iter(self.space.objectives))
        self._study.report(repeat.trial, round(rung * 1000), row.value(first_objective))
        if rung == self.space.budget.rungs_kimg[-1] or self._promotable(rung) is repeat:
            repeat.passed = rung
            self._writer.save(repeat)
            return True
        self._pause(repeat, rung)
        return False

    def clock(self, work: Repeat | Preparation, working: bool, node: str = "") -> None:
        """Record that the devices of a node start to work for what was handed out, or that it waits."""
        if working:
            work.start_clock(node)
            self._writer.save(work)
        else:  # perhaps for disk space, so this may not fit on the disk either
            work.stop_clock()

    def charge(self, preparation: Preparation, device_hours: float, now: bool) -> None:
        """Record what a preparation has cost, unless this sweep only found it in the dataset's cache."""
        if now or preparation.resumed or preparation.attempt > 1:
            preparation.cost = device_hours
            self._writer.save(preparation)

    def withdraw(self, work: Repeat | Preparation) -> None:
        """Withdraw what waits, so that it is handed out again; this does not count as an attempt."""
        work.status = "waiting"
        self._writer.save(work)
        self.say(f"withdrawing {self._name(work)}, which was waiting: the healthy nodes have changed")

    def finish(self, work: Repeat | Preparation, failure: str = "", final: bool = False) -> None:
        """Record that something has ended, successfully or with a failure, which is retried unless it is `final`."""
        if not work.open:
            return  # halving has paused or stopped it
        if isinstance(work, Repeat) and not failure and not self._scored(work, self.space.budget.rungs_kimg[-1]):
            failure = "its scores at the last rung are missing or not finite"
            final = True
        if failure and not final and work.attempt <= self.space.budget.retries:
            work.status = "waiting"
            work.cause = failure
            work.attempt += 1
            work.stop_clock()
            self._writer.save(work)
            self.say(f"{self._name(work)} failed ({failure}); starting attempt {work.attempt}")
        elif isinstance(work, Repeat):
            self._close(work, "failed" if failure else "finished", failure)
        else:
            self._end(work, failure)

    def _end(self, preparation: Preparation, failure: str) -> None:
        preparation.stop_clock()
        preparation.status = "failed" if failure else "finished"
        preparation.cause = failure
        preparation.ended = time.time()
        self._writer.save(preparation)
        ending = f"failed ({failure})" if failure else "finished"
        self.say(f"{preparation.name} {ending}: {_short(preparation.device_hours)} device-hours")

    def stop(self, repeat: Repeat, cause: str) -> None:
        """End a repeat that waits, runs or is paused, because its trial has been stopped (`search/steering.py`)."""
        self._close(repeat, "stopped", cause)

    def change_limits(self, space: Space) -> None:
        """Decide from now on by another budget, which is on disk already."""
        self.space = space
        self._learner.change_limits(space)

    def note(self, work: Repeat | Preparation, text: str) -> None:
        """Print a message from a worker."""
        self.say(f"{self._name(work)}: {text}")

    def files(self, work: Repeat | Preparation) -> WorkFolder:
        """Return the files of what was handed out."""
        return self._writer.files(work)

    def show_race(self) -> None:
        """Bring the second study of the journal up to date; while the race runs, that is done now and then."""
        self._study.show_race(self._proposals)

    def _recover(self) -> None:
        """Reopen what a killed driver had handed out, and retrain what is damaged.

        A reference or proxy that failed is tried again: trials to come may need it.
        """
        for preparation in self.preparations.values():
            preparation.resumed |= preparation.status == "running" and preparation.began is not None
            if preparation.status != "finished":
                preparation.status = "waiting"
                preparation.attempt = 1
                self._writer.save(preparation)
        for trial in self.trials:
            if trial.status in ("running", "paused", "complete"):
                self._reopen(trial)
        self._study.match(self._proposals)
        self.show_race()

    def _reopen(self, trial: Trial) -> None:
        """Let a trial's open repeats be handed out again, and its damaged ones be retrained.

        The damaged repeats of trials that halving stopped are not worth that: they are left out, and named.
        """
        damaged = [repeat for repeat in trial.repeats if repeat.status == "damaged"]
        for lost in damaged:
            repeat = self._new_repeat(trial, lost.repeat, lost.phase)
            repeat.spent = lost.spent
            if trial.status == "complete":
                repeat.passed = self.space.budget.rungs_kimg[-1]  # halving has let it continue
            trial.repeats[repeat.repeat] = repeat
            self.say(f"retraining damaged repeat {self._label(repeat)} from its last checkpoint")

        for repeat in trial.repeats:
            if repeat.open:
                repeat.status = "waiting"
                self._write_recipe(trial, repeat)
                self._writer.save(repeat)

        if trial.repeats:
            self._update_status(trial.repeats[0])

    def _unfinished(self) -> list[Repeat]:
        """Return the repeats that were begun and wait to be handed out."""
        # A trial without a repeat: the driver was killed between the two.
        for trial in self.trials:
            if trial.status == "running" and not trial.repeats:
                self._add(trial, "search")
        return [repeat for repeat in self.repeats if repeat.status == "waiting"]

    def _search(self) -> Repeat | None:
        self._stop_hopeless()
        if halving.search_hours_left(self.space, self.device_hours) <= 0:
            return None
        # Once no new trial is to come, more of those that wait may continue.
        return self._promotion() or self._new_trial() or self._promotion()

    def _promotion(self) -> Repeat | None:
        """Promote a paused repeat that may continue, from the highest rung at which there is one."""
        for rung in reversed(self._rungs()):
            trial = rung.promotable()
            if trial and trial.status == "paused":
                return self._promote(trial.repeats[0], rung.kimg)
        return None

    def _new_trial(self) -> Repeat | None:
        while self._trials_to_come():
            number = len(self._proposals)
            fixed = self._fixed_values(number)
            learned = self._learner.learned(self._proposals)
            values = proposals.propose(self._proposals, self.space, self._seed, fixed, learned)
            trial = Trial(number, values)
            refusal = self._refusal(trial)
            trial.status = "skipped" if refusal else "running"
            self._proposals.append(trial)
            self._writer.save_trial(trial)
            self._study.add(trial)
            if refusal:
                self.say(f"skipping proposal {number:04d}: {refusal}")
                continue

            self.trials.append(trial)
            return self._add(trial, "search")

        if self._too_few_sound() and not self._gave_up:
            self._gave_up = True
            self.say(f"ending the search: too few of {len(self._proposals)} proposals could be trained")
        return None

    def _refusal(self, trial: Trial) -> str:
        """Return why a proposal is not to be trained; empty if it is. An arm is trained whatever it costs."""
        try:
            recipe = self._base.replace(trial.params)
        except UserError as contradiction:  # one that no condition of the space excludes
            return str(contradiction)
        if self._known_costs:
            trial.costs = self._known_costs(recipe)
        return "" if self.space.arms else feasibility.broken_constraint(self.space, trial.costs)

    def _fixed_values(self, number: int) -> Mapping[str, Any] | None:
        """Return values that the trial of this number has to have: an arm's, or those with which the sweep begins."""
        if self.space.arms:
            return self._next_arm()
        first = self._warm_start.first
        return first[number] if number < len(first) else None

    def _trials_to_come(self) -> int:
        """Return how many more trials the search will propose; where hours alone limit it, as many as so far."""
        if self._learner.gains_too_little(self._proposals, self.trials) or self._too_few_sound():
            return 0
        return self._wanted_trials() - len(self._sound())

    def _wanted_trials(self) -> int:
        """Return how many trials the search is to have in the end."""
        so_far = len(self._sound())
        if self.space.budget.trials is None:
            return so_far + max(so_far, MIN_TRIALS_TO_COME)
        return max(so_far, self.space.budget.trials)

    def _too_few_sound(self) -> bool:
        """Whether so many proposals were refused that no more are made."""
        return len(self._proposals) >= MAX_PROPOSALS_PER_TRIAL * self._wanted_trials()

    @property
    def _ranks(self) -> Mapping[int, Rank] | None:
        return self._learner.ranks(self._proposals)

    def _rungs(self) -> list[halving.Rung]:
        return halving.rungs(self._sound(), self.space, self._trials_to_come(), self._ranks)

    def _promotable(self, kimg: float) -> Repeat | None:
        """Return the repeat that may continue after this rung now."""
        rung = next(rung for rung in self._rungs() if rung.kimg == kimg)
        trial = rung.promotable()
        return trial.repeats[0] if trial else None

    def _promote(self, repeat: Repeat, kimg: float) -> Repeat:
        repeat.passed = kimg
        self.say(f"promoting repeat {self._label(repeat)} after {kimg:g} kimg")
        return repeat

    def _pause(self, repeat: Repeat, kimg: float) -> None:
        repeat.status = "paused"
        self._same_failures.clear()
        repeat.stop_clock()
        self._writer.save(repeat)
        self._update_status(repeat)
        self.say(f"repeat {self._label(repeat)} paused at {kimg:g} kimg: {self._scores(repeat)}")

    def _stop_hopeless(self) -> None:
        """Stop the paused repeats whose places others will take, and delete their checkpoints and snapshots."""
        for rung in self._rungs():
            for trial in rung.hopeless(
                rung.places if halving.search_hours_left(self.space, self.device_hours) > 0 else 0
            ):
                files = self.folder.repeat(trial.number, 0)
                self._close(trial.repeats[0], "stopped", f"not among the best at {rung.kimg:g} kimg")
                for folder in (files.checkpoint, files.snapshots):
                    shutil.rmtree(folder, ignore_errors=True)

    def _sound(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status != "damaged"]

    def _next_arm(self) -> dict[str, Any] | None:
        tried = [trial.params for trial in self._sound()]
        return next((arm for arm in self.space.arms.values() if arm not in tried), None)

    def _race(self) -> Repeat | None:
        # While the last trials of the search are trained, nodes that they do not need begin with its best so far.
        complete = sum(trial.status == "complete" for trial in self.trials)
        if complete < self.space.budget.leaders and any(trial.unfinished for trial in self.trials):
            return None
        trial = race.next_trial(race.leaders(self.trials, self.space, self._ranks), self.space)
        return self._add(trial, "race") if trial else None

    def _add(self, trial: Trial, phase: records.Phase) -> Repeat:
        repeat = self._new_repeat(trial, len(trial.repeats), phase)
        trial.repeats.append(repeat)
        self._writer.save(repeat)
        self._writer.save_trial(trial)
        values = ", ".join(f"{path} {_short(value)}" for path, value in trial.params.items())
        self.say(f"starting repeat {self._label(repeat)} of the {phase}: {values}")
        return repeat

    def _new_repeat(self, trial: Trial, number: int, phase: records.Phase) -> Repeat:
        # Not by `seed_of`, so that sweeps that were begun before it keep their seeds.
        digest = hashlib.sha256(f"{self._seed}/{trial.number}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") >> 1
        repeat = Repeat(trial.number, number, seed, phase, devices=self._devices)
        self._write_recipe(trial, repeat)
        return repeat

    def _write_recipe(self, trial: Trial, repeat: Repeat) -> None:
        recipe = self._base.replace(trial.params).to_yaml()
        repeat.recipe = checksums.text_checksum(recipe)
        self._writer.write_recipe(repeat, recipe)

    def _close(self, repeat: Repeat, status: records.RepeatStatus, cause: str = "") -> None:
        """Write a repeat's end, then the trial's, then tell Optuna; `_recover` completes this after a kill."""
        repeat.status = status
        repeat.cause = cause
        repeat.ended = time.time()
        self._same_failures.count(repeat)
        repeat.stop_clock()
        self._writer.save(repeat)
        if repeat.phase == "search":
            self._update_status(repeat)
            self._report_end(self._trial(repeat))
        if repeat.phase == "race":
            self._throttle(self.show_race)

        reason = f" ({cause})" if cause else ""
        self.say(f"repeat {self._label(repeat)} {status}{reason}: {self._scores(repeat)}")

    def _scores(self, repeat: Repeat) -> str:
        """Return the objectives at the highest rung, for a message."""
        last = repeat.last.to_entries() if repeat.last else {}
        scores = [f"{name} {_short(last[name])}" for name in self.space.objectives if name in last]
        return " ".join(scores) or "no score"

    def _trial(self, repeat: Repeat) -> Trial:
        return next(trial for trial in self.trials if trial.number == repeat.trial)

    def _update_status(self, repeat: Repeat) -> None:
        """Write the status of a repeat's trial if it has changed."""
        trial = self._trial(repeat)
        if trial.status != _status(trial):
            trial.status = _status(trial)
            self._writer.save_trial(trial)

    def _report_end(self, trial: Trial) -> None:
        """Tell Optuna how a trial has ended."""
        first = trial.repeats[0]
        if self._study.trials()[trial.number].state.is_finished():
            return

        if trial.status == "complete":
            self._study.complete(trial.number, first.last)
        elif trial.status == "pruned":
            self._study.prune(trial.number)
        else:
            self._study.fail(trial.number)

    def _scored(self, repeat: Repeat, kimg: float) -> bool:
        return all(math.isfinite(repeat.score(name, kimg)) for name in self.space.objectives)

    def _label(self, repeat: Repeat) -> str:
        return self.folder.repeat(repeat.trial, repeat.repeat).label

    def _name(self, work: Repeat | Preparation) -> str:
        return work.name if isinstance(work, Preparation) else f"repeat {self._label(work)}"


def _status(trial: Trial) -> records.TrialStatus:
    """Return the status of a trial, which follows from that of its first repeat."""
    first: records.RepeatStatus = trial.repeats[0].status
    ends: dict[records.RepeatStatus, records.TrialStatus] = {
        "paused": "paused",
        "finished": "complete",
        "stopped": "pruned",
        "failed": "failed",
    }
    return ends.get(first, "running")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
