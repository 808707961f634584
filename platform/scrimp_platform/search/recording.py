"""A finished sweep as a recording: the trials that it trained, what each cost and scored, and which came out good.

A search can be replayed on it (`search/replay.py`). It cannot tell what was never trained: a trial that was stopped
early has no score beyond the rung where it stopped.
"""

from dataclasses import dataclass

from scrimp_platform import store
from scrimp_platform.search import records
from scrimp_platform.search.records import Records, Repeat, Trial
from scrimp_platform.search.steering import PAUSED
from scrimp_platform.search.verdict import MARGIN, judge
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

MIN_TRIALS = 10
"""A search over fewer recipes finds any of them soon."""


@dataclass(frozen=True)
class Recording:
    """What a finished sweep has recorded of its search, and what its race said.

    Attributes
    ----------
    space : Space
        What was searched.
    seed : int
        The sweep's.
    trials : dict
        Every trial that was trained, by number.
    recommended : int
        The trial that the sweep recommends.
    good : frozenset of int
        This trial, and those of the race whose means over fresh seeds are within 2% of the best.
    search_hours, race_hours : float
        Device-hours of the first repeats, and of those with fresh seeds.
    """

    space: Space
    seed: int
    trials: dict[int, Trial]
    recommended: int
    good: frozenset[int]
    search_hours: float
    race_hours: float

    @property
    def scored(self) -> int:
        """How many trials have a score of the search at the last rung."""
        last = self.space.budget.rungs_kimg[-1]
        return sum(last in trial.scored_rungs(self.space) for trial in self.trials.values())

    def raced(self, number: int) -> bool:
        """Whether a trial has fresh seeds."""
        return bool(records.unbiased_repeats(self.trials[number], self.space, self.space.budget.rungs_kimg[-1]))


def read(folder: SweepFolder) -> Recording:
    """Read a finished sweep.

    Raises
    ------
    UserError
        If the folder holds no sweep, or one that a replay could say nothing about.
    """
    space = records.space_of(folder)
    known = records.read_as_observer(folder)
    obstacle = _obstacle(folder, space, known)
    if obstacle:
        raise UserError(f"{folder.path}: cannot be replayed: {obstacle}")

    last = space.budget.rungs_kimg[-1]
    verdict = judge([trial for trial in known.trials if records.unbiased_repeats(trial, space, last)], space)
    if verdict is None:
        raise UserError(f"{folder.path}: cannot be replayed: no trial of its race keeps the constraints")

    (objective,) = space.objectives
    means = {number: own[objective].mean for number, own in verdict.summaries.items()}
    best = means[verdict.tied[0]]
    good = {number for number, mean in means.items() if abs(mean - best) <= MARGIN * abs(best)}
    return Recording(
        space=space,
        seed=records.sweep_description(folder)["seed"],
        trials={trial.number: trial for trial in known.trials},
        recommended=verdict.recommended,
        good=frozenset(good | {verdict.recommended}),
        search_hours=sum(repeat.device_hours for repeat in known.repeats if repeat.phase == "search"),
        race_hours=sum(repeat.device_hours for repeat in known.repeats if repeat.phase == "race"),
    )


def _obstacle(folder: SweepFolder, space: Space, known: Records) -> str:
    """Return why a replay of a sweep could not be trusted; empty if it can."""
    last = space.budget.rungs_kimg[-1]
    outcome = store.read_sound(folder.outcome)
    is_open = any(trial.unfinished for trial in known.trials) or any(repeat.open for repeat in known.repeats)

    if space.arms:
        return "its arms were compared; there was no search"
    if len(space.objectives) > 1:
        return "it has several objectives, so that no single recipe is what a search should find"
    if known.problems:
        return f"records are damaged: {known.problems[0]}"
    if store.holder(folder.lock) or not outcome or outcome["reason"] in ("interrupted", PAUSED) or is_open:
        return "it is not finished; run its command again to end it"
    if known.preparations:
        return "its trials share references and proxies, whose cost belongs to no single trial"
    if len(known.trials) < MIN_TRIALS:
        return f"it has {len(known.trials)} trials, and a replay needs {MIN_TRIALS}"
    if not any(records.unbiased_repeats(trial, space, last) for trial in known.trials):
        return "no trial has fresh seeds, so nothing says which recipes are good; a sweep with --repeats 3 has them"
    return ""


def hours(repeat: Repeat, kimg: float) -> float:
    """Return the device-hours after which a repeat had reached a rung, or had failed before it.

    Beyond the end of the record they are estimated: training and scoring are taken to go on as fast as they were.
    """
    end = max(repeat.rungs, default=0.0)
    if kimg in repeat.rungs and kimg < end:
        return repeat.rungs[kimg].seconds * repeat.devices / 3600
    if repeat.status == "failed":
        return repeat.device_hours
    further = repeat.rungs[end].seconds * (kimg / end - 1)
    return repeat.device_hours + further * repeat.devices / 3600
