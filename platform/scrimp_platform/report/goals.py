"""Other objectives and constraints for a sweep that has been trained, as the command line says them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scrimp_platform.search.records import Trial
from scrimp_spaces import space as spaces
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

BOUNDS = {"<=": "max", ">=": "min"}


def replaced(space: Space, objectives: Sequence[str], constraints: Sequence[str]) -> Space:
    """Return the space with these objectives (`fid:minimize`) and constraints (`memorized_fraction<=0.1`) as its own.

    Where none of a kind is given, the space's own stay.

    Raises
    ------
    UserError
        If one cannot be read, or is no score that this sweep measures.
    """
    limits: dict[str, dict[str, float]] = {}
    for text in constraints:
        name, side, limit = _constraint(text)
        limits.setdefault(name, {})[side] = limit
    return with_goals(space, dict(map(_objective, objectives)), limits)


def with_goals(
    space: Space, objectives: Mapping[str, Any] | None, constraints: Mapping[str, Mapping[str, float]] | None
) -> Space:
    """Return the space with these objectives and constraints; where none of a kind are given, its own stay.

    Raises
    ------
    UserError
        If one is no score that such a sweep measures.
    """
    goals = {"objectives": objectives, "constraints": constraints}
    changes = {name: value for name, value in goals.items() if value}
    return spaces.parse_space(space.model_dump() | changes, "report")


def require_measured(space: Space, trials: Sequence[Trial]) -> None:
    """Refuse to rank by a score that no repeat has.

    Raises
    ------
    UserError
        If there is one; it names the scores that there are.
    """
    measured = {name for trial in trials for repeat in trial.repeats for name in repeat.last}
    for name in [*space.objectives, *space.constraints]:
        if measured and name not in measured:
            raise UserError(f"{name}: was not measured in this sweep; there are {', '.join(sorted(measured))}")


def _objective(text: str) -> tuple[str, str]:
    name, colon, direction = text.partition(":")
    if not colon or direction not in ("minimize", "maximize"):
        raise UserError(f"--objective {text}: write it as SCORE:minimize or SCORE:maximize")
    return name, direction


def _constraint(text: str) -> tuple[str, str, float]:
    """Return the score, `max` or `min`, and the limit."""
    parts = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
    if not parts:
        raise UserError(f"--constraint {text!r}: write it as 'SCORE<=LIMIT' or 'SCORE>=LIMIT', in quotes")
    return parts[1], BOUNDS[parts[2]], float(parts[3])
