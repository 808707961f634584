"""The values of searched fields as Optuna has them: its choices are scalars, and it knows no steps on a log scale."""

import json
from typing import Any

import optuna

from scrimp_spaces.ranges import Range


def suggest(trial: optuna.trial.BaseTrial, path: str, span: Range) -> Any:
    """Let a trial suggest a value of the field at this path."""
    if span.uniform:
        return trial.suggest_float(path, *span.uniform)
    if span.loguniform:
        return trial.suggest_float(path, *span.loguniform, log=True)
    if span.int:
        low, high = span.int
        return trial.suggest_int(path, low // span.step, high // span.step, log=span.log) * span.step
    options = [to_optuna(span, option) for option in span.choice or ()]
    return from_optuna(span, trial.suggest_categorical(path, options))


def to_optuna(span: Range, value: Any) -> Any:
    """Return a value as Optuna has it: lists become JSON, whole numbers become their number of steps."""
    if span.int:
        return value // span.step
    if span.choice and isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return value


def from_optuna(span: Range, value: Any) -> Any:
    """Return the value that Optuna has in this form."""
    if span.int:
        return value * span.step
    options = {to_optuna(span, option): option for option in span.choice or ()}
    return options[value] if options else value
