"""Ranking an existing sweep by other objectives and constraints."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scrimp_platform.search.records import Trial
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

BOUND_NAMES = {"<=": "max", ">=": "min"}


def with_parsed_goals(space: Space, objectives: Sequence[str], constraints: Sequence[str]) -> Space:
    """Return the space with other goals, as the command line writes them.

    Parameters
    ----------
    space
        The space of the sweep.
    objectives
        Such as `fid:minimize`; without any, those of the space remain.
    constraints
        Such as `memorized_fraction<=0.1`; without any, those of the space remain.

    Raises
    ------
    UserError
        If one cannot be parsed, or this sweep does not measure its score.
    """
    bounds: dict[str, dict[str, float]] = {}
    for text in constraints:
        name, side, limit = _parse_constraint(text)
        bounds.setdefault(name, {})[side] = limit
    directions = dict(map(_parse_objective, objectives))
    return with_goals(space, directions, bounds)


def with_goals(
    space: Space, objectives: Mapping[str, Any] | None, constraints: Mapping[str, Mapping[str, float]] | None
) -> Space:
    """Return the space with other objectives or constraints; where none are given, those of the space remain.

    Raises
    ------
    UserError
        If a direction or a bound is not valid. Whether a score was measured is for `require_measured`.
    """
    goals = {"objectives": objectives, "constraints": constraints}
    changes = {name: value for name, value in goals.items() if value}
    try:
        # Not `parse_space`, which would load the recipe and so run files of own parts, only because a sweep names them.
        return Space.model_validate(space.model_dump() | changes)
    except UserError as error:
        raise UserError(f"report: {error}") from None


def require_measured(space: Space, trials: Sequence[Trial]) -> None:
    """Refuse to rank by a score that was not measured in any repeat.

    Raises
    ------
    UserError
        If a goal's score is missing; the message lists the scores that exist.
    """
    last_rows = [repeat.last for trial in trials for repeat in trial.repeats if repeat.last]
    measured = {name for row in last_rows for name in row.to_entries()}
    for name in [*space.objectives, *space.constraints]:
        if measured and name not in measured:
            raise UserError(f"{name}: was not measured in this sweep; there are {', '.join(sorted(measured))}")


def _parse_objective(text: str) -> tuple[str, str]:
    name, colon, direction = text.partition(":")
    if not colon or direction not in ("minimize", "maximize"):
        raise UserError(f"--objective {text}: write it as SCORE:minimize or SCORE:maximize")
    return name, direction


def _parse_constraint(text: str) -> tuple[str, str, float]:
    """Return the name of the score, `max` or `min`, and the limit."""
    parts = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
    if not parts:
        raise UserError(f"--constraint {text!r}: write it as 'SCORE<=LIMIT' or 'SCORE>=LIMIT', in quotes")
    return parts[1], BOUND_NAMES[parts[2]], float(parts[3])
