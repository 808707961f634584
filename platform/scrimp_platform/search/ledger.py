"""What the sweep has decided and what it decides next, on disk before anyone acts on it.

The ledger knows nothing of Ray: `propose`, `report` and `finish` are all that the engine calls. It is rebuilt from
the sweep's folder, so a driver that was killed goes on where it stopped.
"""

import hashlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from scrimp_platform import storage_loss, store
from scrimp_platform.search import race, records
from scrimp_platform.search.records import Repeat, Trial
from scrimp_platform.search.study import Study
from scrimp_platform.store import SweepFolder, write_atomic
from scrimp_spaces.space import Space
from scrimp_trainers.common import checksums
from scrimp_trainers.common.errors import Diverged, UserError

Say = Callable[[str], None]

MOST_ALIKE = 3
"""Trials that fail for good in a row, for the same cause, before a sweep ends: the fault is not their recipes'."""
MOST_PROPOSALS = 10
"""Proposals a trial, at most: where a space proposes little else than contradictions, its search ends early."""


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
    devices : int
        Devices that one repeat takes.
    say : Callable
        Told each decision, one line each.
    """

    def __init__(self, folder: SweepFolder, space: Space, seed: int, devices: int, say: Say) -> None:
        self.folder = folder
        self.space = space
        self._seed = seed
        self._devices = devices
        self.say = say
        self._alike: dict[int, str] = {}
        self._base = space.base()
        known = records.read(folder)
        self.trials = known.trials
        for problem in known.problems:
            say(problem)
        self._study = Study(folder.journal, space, seed, say)
        self._recover(known.skipped)

    @property
    def repeats(self) -> list[Repeat]:
        """Every repeat, in order of its trial."""
        return [repeat for trial in self.trials for repeat in trial.repeats]

    @property
    def running(self) -> list[Repeat]:
        """Repeats that were handed out and have not come back."""
        return [repeat for repeat in self.repeats if repeat.status == "running"]

    @property
    def device_hours(self) -> float:
        """Device-hours that the sweep has spent so far."""
        return sum(repeat.device_hours for repeat in self.repeats)

    @property
    def in_vain(self) -> bool:
        """Whether there is nothing to show: no trial began, or all failed, or too many failed alike."""
        return len(self._alike) >= MOST_ALIKE or all(trial.status == "failed" for trial in self.trials)

    def exhausted(self) -> str:
        """Say which limit of the budget has been reached; empty while there is none."""
        limit = self.space.budget.max_gpu_hours
        if limit is not None and self.device_hours >= limit:
            return f"max_gpu_hours {limit:g} reached"
        if len(self._alike) >= MOST_ALIKE:
            return f"{len(self._alike)} trials in a row failed alike ({next(iter(self._alike.values()))})"
        return ""

    def warm_start(self, values: dict[str, Any]) -> None:
        """Propose these values of searched fields next, unless a trial has them."""
        if not any(values.items() <= trial.params.items() for trial in self.trials):
            self._study.enqueue(values)

    def propose(self) -> Repeat | None:
        """Decide on the next repeat and hand it out: an interrupted one, a new trial's, or one of the race.

        None means that nothing can be decided now; once `running` is empty too, the sweep is done.
        """
        repeat = self._interrupted() or self._search() or self._race()
        if repeat:
            repeat.status, repeat.started, repeat.began = "running", time.time(), None
            self._save(repeat)
        return repeat

    def report(self, repeat: Repeat, line: dict[str, Any]) -> bool:
        """Take a repeat's scores at a rung and decide whether it goes on. Hearing a line again changes nothing."""
        rung = float(line["rung"])
        repeat.scores[rung] = line
        # A missing score says nothing about the trial's rank: `finish` will fail it.
        if repeat.phase == "race" or rung <= repeat.passed or not self._scored(repeat, rung):
            return True
        self._study.report(repeat.trial, round(rung * 1000), float(line[next(iter(self.space.objectives))]))
        others = [
            other.scores[rung]
            for other in self.repeats
            if other.phase == "search" and other is not repeat and self._scored(other, rung)
        ]
        if rung == self.space.budget.rungs_kimg[-1] or race.survives(line, others, self.space):
            repeat.passed = rung
            self._save(repeat)
            return True
        self._close(repeat, "stopped", f"not among the best at {rung:g} kimg")
        return False

    def clock(self, repeat: Repeat, working: bool) -> None:
        """Take note that a repeat's devices begin to work for it, or that it waits."""
        if working:
            repeat.start_clock()
            self._save(repeat)
        else:  # perhaps for room on the disk, where this could not be written either
            repeat.stop_clock()

    def take_back(self, repeat: Repeat) -> None:
        """Let a repeat that was handed out and only waits be handed out again; that is no attempt."""
        repeat.status = "waiting"
        self._save(repeat)
        self.say(f"repeat {self._label(repeat)} waits, and is handed out again for the nodes that are fit now")

    def finish(self, repeat: Repeat, failure: str = "", final: bool = False) -> None:
        """Take note that a repeat has ended: well, or with a failure that another attempt may mend unless `final`."""
        if not repeat.open:
            return  # Halving has closed it already.
        if not failure and not self._scored(repeat, self.space.budget.rungs_kimg[-1]):
            failure, final = "its scores at the last rung are missing or not finite", True
        if failure and not final and repeat.attempt <= self.space.budget.retries:
            repeat.status, repeat.cause = "waiting", failure
            repeat.attempt += 1
            repeat.stop_clock()
            self._save(repeat)
            self.say(f"repeat {self._label(repeat)} failed ({failure}); attempt {repeat.attempt} follows")
            return
        self._close(repeat, "failed" if failure else "finished", failure)

    def note(self, repeat: Repeat, text: str) -> None:
        """Pass on what a repeat has to say."""
        self.say(f"repeat {self._label(repeat)}: {text}")

    def _recover(self, skipped: list[Trial]) -> None:
        """Take back what a killed driver had handed out, and have trained again what is damaged."""
        for trial in self.trials:
            if trial.status in ("running", "complete"):
                self._mend(trial)
        self.rebuilt = self._study.match(sorted([*self.trials, *skipped], key=lambda trial: trial.number))

    def _mend(self, trial: Trial) -> None:
        """Train a trial's damaged repeats again; what halving stopped is not worth it, and stays left out by name."""
        for damaged in [repeat for repeat in trial.repeats if repeat.status == "damaged"]:
            repeat = self._new_repeat(trial, damaged.repeat, damaged.phase)
            repeat.spent = damaged.spent
            if trial.status == "complete":
                repeat.passed = self.space.budget.rungs_kimg[-1]  # halving has let it go on
            trial.repeats[repeat.repeat] = repeat
            self.say(f"repeat {self._label(repeat)} is trained again, from its last checkpoint")
        for repeat in [repeat for repeat in trial.repeats if repeat.open]:
            repeat.status = "waiting"
            self._write_recipe(trial, repeat)
            self._save(repeat)
        if trial.repeats and trial.status != (status := _status(trial)):
            trial.status = status
            self._write(partial(trial.save, self.folder))

    def _interrupted(self) -> Repeat | None:
        bare = next((trial for trial in self.trials if trial.status == "running" and not trial.repeats), None)
        if bare:
            return self._add(bare, "search")
        repeat = next((repeat for repeat in self.repeats if repeat.status == "waiting"), None)
        if repeat:
            self.say(f"repeat {self._label(repeat)} goes on")
        return repeat

    def _search(self) -> Repeat | None:
        budget = self.space.budget.trials
        while len(self._sound()) < budget and len(self._study.trials()) < MOST_PROPOSALS * budget:
            number, params = self._study.ask(self._next_arm())
            try:
                self._base.replace(params)
            except UserError as refusal:  # a contradiction that no condition of the space excludes
                self._write(partial(Trial(number, params, "skipped").save, self.folder))
                self._study.prune(number)
                self.say(f"proposal {number:04d} is passed over: {refusal}")
                continue
            trial = Trial(number, params)
            self._write(partial(trial.save, self.folder))
            self.trials.append(trial)
            return self._add(trial, "search")
        return None

    def _sound(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.status != "damaged"]

    def _next_arm(self) -> dict[str, Any] | None:
        tried = [trial.params for trial in self._sound()]
        return next((arm for arm in self.space.arms.values() if arm not in tried), None)

    def _race(self) -> Repeat | None:
        if any(trial.status == "running" for trial in self.trials):
            return None
        trial = race.next_trial(race.leaders(self.trials, self.space), self.space)
        return self._add(trial, "race") if trial else None

    def _add(self, trial: Trial, phase: records.Phase) -> Repeat:
        repeat = self._new_repeat(trial, len(trial.repeats), phase)
        trial.repeats.append(repeat)
        self._save(repeat)
        self._write(partial(trial.save, self.folder))
        values = ", ".join(f"{path} {_short(value)}" for path, value in trial.params.items())
        self.say(f"repeat {self._label(repeat)} of the {phase}: {values}")
        return repeat

    def _new_repeat(self, trial: Trial, number: int, phase: records.Phase) -> Repeat:
        digest = hashlib.sha256(f"{self._seed}/{trial.number}/{number}".encode()).digest()
        repeat = Repeat(trial.number, number, int.from_bytes(digest[:4], "big") >> 1, phase, devices=self._devices)
        self._write_recipe(trial, repeat)
        return repeat

    def _write_recipe(self, trial: Trial, repeat: Repeat) -> None:
        recipe = self._base.replace(trial.params).to_yaml()
        repeat.recipe = checksums.of_text(recipe)
        self._write(partial(write_atomic, self.folder.repeat(trial.number, repeat.repeat).recipe, recipe))

    def _close(self, repeat: Repeat, status: records.RepeatStatus, cause: str = "") -> None:
        """Write down a repeat's end, then the trial's, then tell Optuna: a kill in between is mended by `_recover`."""
        repeat.status, repeat.cause, repeat.ended = status, cause, time.time()
        self._compare(repeat)
        repeat.stop_clock()
        self._save(repeat)
        if repeat.phase == "search":
            self._tell(next(trial for trial in self.trials if trial.number == repeat.trial))
        scores = " ".join(
            f"{name} {_short(repeat.last[name])}" for name in self.space.objectives if name in repeat.last
        )
        self.say(
            f"repeat {self._label(repeat)} {status}" + (f" ({cause})" if cause else "") + f": {scores or 'no score'}"
        )

    def _compare(self, repeat: Repeat) -> None:
        """Collect the trials in a row that fail alike, in this run of the sweep.

        A training that diverges says something of its recipe, and counts neither way.
        """
        if repeat.status == "failed" and repeat.cause.startswith(Diverged.__name__):
            return
        alike = set(self._alike.values())
        if repeat.status != "failed" or alike - {repeat.cause}:
            self._alike.clear()
        if repeat.status == "failed":
            self._alike[repeat.trial] = repeat.cause

    def _tell(self, trial: Trial) -> None:
        first = trial.repeats[0]
        trial.status = _status(trial)
        self._write(partial(trial.save, self.folder))
        if self._study.trials()[trial.number].state.is_finished():
            return
        if trial.status == "complete":
            self._study.complete(trial.number, first.last)
        elif trial.status == "pruned":
            self._study.prune(trial.number)
        else:
            self._study.fail(trial.number)

    def _scored(self, repeat: Repeat, kimg: float) -> bool:
        scores = repeat.scores.get(kimg, {})
        return all(math.isfinite(float(scores.get(name, math.nan))) for name in self.space.objectives)

    def _save(self, repeat: Repeat) -> None:
        self._write(partial(repeat.save, self.folder.repeat(repeat.trial, repeat.repeat)))

    def _write(self, write: Callable[[], None]) -> None:
        def write_there() -> None:
            storage_loss.require(self.folder.journal)
            write()

        store.patiently(write_there, self.say)

    def _label(self, repeat: Repeat) -> str:
        return self.folder.repeat(repeat.trial, repeat.repeat).label


def _status(trial: Trial) -> records.TrialStatus:
    """Return what the end of a trial's first repeat makes of the trial."""
    first: records.RepeatStatus = trial.repeats[0].status
    ends: dict[records.RepeatStatus, records.TrialStatus] = {
        "finished": "complete",
        "stopped": "pruned",
        "failed": "failed",
    }
    return ends.get(first, "running")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
