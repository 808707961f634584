"""Successive halving: which trials of the search continue after a rung, which wait, and which can be given up.

Every trial is paused at a rung, and promoted when it is among the best 1/reduction of all that have reached the rung
(ASHA, Li et al. 2020, "A system for massively parallel hyperparameter tuning"). ASHA promotes as many as ever were
among the best, which with better and better proposals are more than 1/reduction; here that share is kept, but at least
as many continue as enter the race.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scrimp_platform.search.order import Rank, order
from scrimp_platform.search.records import Trial
from scrimp_spaces.budget import Budget
from scrimp_spaces.space import Space


@dataclass(frozen=True)
class Rung:
    """The trials at a rung.

    Attributes
    ----------
    kimg : float
        The rung.
    reached : int
        How many have reached it.
    most : int
        How many will have reached it in the end, if none fails.
    places : int
        How many will have been promoted from it in the end.
    ranking : list of Trial
        Those that were promoted from it or may be, from best to worst.
    """

    kimg: float
    reached: int
    most: int
    places: int
    ranking: list[Trial]

    @property
    def promoted(self) -> int:
        """How many have been promoted from it."""
        return sum(_has_passed(trial, self.kimg) for trial in self.ranking)

    def promotable(self) -> Trial | None:
        """Return the best trial that waits at the rung, if it may continue now."""
        open_now = self.places * self.reached // max(self.most, 1)
        if self.promoted >= open_now:
            return None
        return next((trial for trial in self.ranking[:open_now] if not _has_passed(trial, self.kimg)), None)

    def hopeless(self, places: int) -> list[Trial]:
        """Return the trials that wait at the rung in vain if so many are promoted: better ones will take the places."""
        waiting = [trial for trial in self.ranking if trial.status == "paused" and not _has_passed(trial, self.kimg)]
        return waiting[max(0, places - self.promoted) :]


def _has_passed(trial: Trial, kimg: float) -> bool:
    return trial.repeats[0].passed >= kimg


def promoted_places(reaching: int, budget: Budget) -> int:
    """Return how many trials continue of those that reach a rung: the share of the best, but enough for a race."""
    return max(int(reaching / budget.reduction), min(reaching, budget.leaders))


def search_work(trials: int, space: Space) -> tuple[float, float]:
    """Return how many kimg a search of so many trials takes, and how many scores, if none fails.

    A score of fewer samples than the last rung's counts as their share.
    """
    kimg = 0.0
    scores = 0.0
    previous = 0.0
    for rung in space.budget.rungs_kimg:
        kimg += trials * (rung - previous)
        scores += trials * space.samples_at(rung) / space.scoring.samples
        trials = promoted_places(trials, space.budget)
        previous = rung
    return kimg, scores


def search_hours_left(space: Space, spent: float) -> float:
    """Return the device-hours left to the search; arms have no race that some were kept for."""
    budget = space.budget
    if budget.max_gpu_hours is None or space.arms:
        return math.inf
    return (1 - budget.race_share) * budget.max_gpu_hours - spent


def rungs(trials: Sequence[Trial], space: Space, to_come: int, expected: Mapping[int, Rank] | None) -> list[Rung]:
    """Return the rungs before the last, in order.

    Parameters
    ----------
    trials : sequence of Trial
        The trials of the sweep.
    to_come : int
        How many more the search will propose.
    expected : mapping, optional
        How good a model expects each trial to be at the last rung, by number; lower is better. Without it trials are
        ranked by their scores at the rung.
    """
    marks = space.budget.rungs_kimg[:-1]
    started = [trial for trial in trials if trial.repeats]
    coming = to_come
    known = []
    for place, kimg in enumerate(marks):
        before = marks[place - 1] if place else 0.0
        reached = []
        on_their_way = 0
        for trial in started:
            if kimg in trial.scored_rungs(space):
                reached.append(trial)
            elif trial.status == "running" and trial.repeats[0].passed >= before:
                on_their_way += 1

        most = len(reached) + on_their_way + coming
        places = promoted_places(most, space.budget)
        contenders = [trial for trial in reached if trial.unfinished or _has_passed(trial, kimg)]
        rung = Rung(kimg, len(reached), most, places, _ranking(contenders, space, kimg, expected))
        coming = max(0, places - rung.promoted)
        known.append(rung)
    return known


def _ranking(trials: list[Trial], space: Space, kimg: float, expected: Mapping[int, Rank] | None) -> list[Trial]:
    if expected:
        return sorted(trials, key=lambda trial: expected[trial.number])
    rows = [trial.repeats[0].rungs[kimg] for trial in trials]
    return [trials[i] for i in order(rows, space)]
