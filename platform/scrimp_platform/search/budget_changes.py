"""The limits of a sweep's budget that `scrimp set` has changed, as `sweep.json` keeps them.

The same command of the sweep resumes it with what was set. Once its options ask for another value than they did when
that was set, they count again: the last word is the user's.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from scrimp_platform import store
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space
from scrimp_trainers.common.errors import UserError

CHANGEABLE = ("trials", "repeats", "max_gpu_hours", "until_gain")
"""Limits that may change while a sweep runs: each decision looks at them, and what is compared depends on none."""
KEY = "set"
"""In `sweep.json`: for each limit that was set its value, and what the sweep's command asked for instead."""

Changes = Mapping[str, Mapping[str, Any]]


def parse(assignment: str) -> tuple[str, Any]:
    """Return the limit and the value that an assignment such as `budget.trials=40` names; `none` removes a limit.

    Raises
    ------
    UserError
        If it is not an assignment, or names something that cannot change.
    """
    path, equals, text = assignment.partition("=")
    field = path.removeprefix("budget.")
    if not equals:
        raise UserError(f"{assignment}: give a value, such as budget.trials=40")
    _require_changeable(field, path)
    return field, _value(text)


def _require_changeable(field: str, path: str) -> None:
    if field not in CHANGEABLE:
        names = ", ".join(f"budget.{name}" for name in CHANGEABLE)
        raise UserError(f"{path}: cannot change in a sweep that has begun; these can: {names}")


def _value(text: str) -> int | float | str | None:
    """Return the number that a text is; a percentage stays a text."""
    if text.lower() == "none":
        return None
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def with_limit(space: Space, field: str, value: Any) -> Space:
    """Return a space with another limit.

    Raises
    ------
    UserError
        If this limit cannot change, or the space does not allow the value.
    """
    _require_changeable(field, f"budget.{field}")
    if space.arms and field == "trials":
        raise UserError("budget.trials: the space lists its trials, which are its arms")
    tree = space.model_dump(mode="json")
    return Space.model_validate(tree | {"budget": tree["budget"] | {field: value}})


def save(folder: SweepFolder, field: str, before: Space, after: Space) -> None:
    """Write to `sweep.json` that a limit has changed.

    Raises
    ------
    UserError
        If the file is missing or damaged.
    """
    description = store.read_json(folder.description)
    if description is None:
        raise UserError(f"{folder.description}: missing")
    changes = description.get(KEY, {})
    asked = changes.get(field, {}).get("instead_of", getattr(before.budget, field))
    changes[field] = {"value": getattr(after.budget, field), "instead_of": asked}
    store.write_json(folder.description, description | {"space": after.model_dump(mode="json"), KEY: changes})


def in_force(folder: SweepFolder, asked: Space) -> Changes:
    """Return the limits that were set and still count, when a sweep's command asks for this space."""
    description = store.read_json(folder.description) or {}
    changes: Changes = description.get(KEY, {})
    return {field: change for field, change in changes.items() if change["instead_of"] == getattr(asked.budget, field)}


def applied(space: Space, changes: Changes) -> Space:
    """Return a space with the limits that were set."""
    for field, change in changes.items():
        space = with_limit(space, field, change["value"])
    return space


def describe(changes: Changes) -> str:
    """Describe in a line what was set; empty if nothing was."""
    parts = [f"budget.{field} {text_of(change['value'])}" for field, change in changes.items()]
    return ", ".join(parts)


def text_of(value: float | None) -> str:
    """Return the text of a limit, as `scrimp set` takes it."""
    return "none" if value is None else f"{value:g}"
