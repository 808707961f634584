"""What a sweep that was begun earlier has left to do, for its plan: told from its records, before anything starts."""

import math
import statistics
from dataclasses import dataclass

from scrimp_platform.cluster import Placement
from scrimp_platform.plan import Plan
from scrimp_platform.report import formatting
from scrimp_platform.search import estimate, records
from scrimp_spaces.budget import Budget


@dataclass(frozen=True)
class Left:
    """What is left of a sweep at most: the race may need fewer repeats, and a limit may end it before."""

    finished: bool
    """Whether it is complete, and its budget allows no more than before."""
    begun: int
    """Trials that were begun."""
    to_begin: int | None
    """Trials to come; None if hours alone limit them."""
    going_on: int
    """Repeats that wait, or were interrupted."""
    of_race: int
    """Repeats of the race to come."""
    hours: float | None
    """None while nothing has been scored."""
    spent: float
    """Device-hours."""
    most_hours: float
    """Device-hours that it may take in all."""

    def text(self) -> str:
        """Describe it in a line."""
        if self.finished:
            return "nothing: the sweep is complete; --trials +4 adds four trials, --repeats sets the seeds of the race"
        if self.spent >= self.most_hours:
            spent = formatting.number(self.spent)
            return f"nothing: of --max-gpu-hours {self.most_hours:g}, {spent} are spent; raise it to go on"

        parts = []
        if self.to_begin is None:
            parts.append("trials to begin")
        elif self.to_begin:
            parts.append(f"{formatting.plural(self.to_begin, 'trial')} after the {self.begun} begun")
        if self.going_on:
            parts.append(f"{formatting.plural(self.going_on, 'repeat')} to go on with")
        if self.of_race:
            parts.append(f"at most {formatting.plural(self.of_race, 'repeat')} of the race")
        time = f"; about {formatting.duration(self.hours)}" if self.hours is not None else ""
        return f"{formatting.conjunction(parts or ['nothing that can be counted yet'])}{time}"


def of_resumed(plan: Plan, placement: Placement) -> Left | None:
    """Return what is left of a sweep; None if it has not begun."""
    if not plan.resumed:
        return None
    description = records.sweep_description(plan.folder)
    known = records.read_as_observer(plan.folder)
    budget = plan.space.budget
    is_complete = records.ending(plan.folder, description) == "complete"
    to_begin = None if budget.trials is None else max(0, budget.trials - len(known.trials))

    # Of a race that is over new trials may lead, and each then gets fresh seeds.
    expected = estimate.max_race_repeats_left(known.trials, plan.space)
    of_race = max(expected, min(budget.leaders, to_begin or 0) * (budget.repeats - 1))
    seconds = estimate.seconds_left(known.trials, plan.space, {}, known.preparations)
    finished = [repeat.last.seconds for repeat in known.repeats if repeat.status == "finished" and repeat.last]
    if seconds is not None and finished:
        seconds += (of_race - expected) * statistics.fmean(finished)

    return Left(
        finished=is_complete and not _allows_more(records.space_of(plan.folder).budget, budget),
        begun=len(known.trials),
        to_begin=to_begin,
        going_on=sum(repeat.open or repeat.status == "paused" for repeat in known.repeats),
        of_race=of_race,
        hours=None if seconds is None else seconds / placement.places / 3600,
        spent=known.device_hours,
        most_hours=math.inf if budget.max_gpu_hours is None else budget.max_gpu_hours,
    )


def _allows_more(before: Budget, after: Budget) -> bool:
    """Whether a complete sweep may have something to do under another budget."""
    for name in ("trials", "repeats", "leaders", "max_gpu_hours"):
        earlier = getattr(before, name)
        if earlier is not None and (getattr(after, name) or math.inf) > earlier:
            return True
    return after.until_gain != before.until_gain
