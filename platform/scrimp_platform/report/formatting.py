"""Numbers, intervals and lists as people read them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from scrimp_platform.search.stats import Summary
from scrimp_spaces.space import Bound


def number(value: Any) -> str:
    """Say a value with three significant digits, nan as nothing, and what is no number as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    return _fixed(value, _decimals(value, 3)) if 1e-4 <= abs(value) < 1e5 else f"{value:.3g}"


def limit(bound: Bound) -> str:
    """Say what a constraint asks for."""
    parts = []
    for word, value, ratio in (("at least", bound.min, bound.min_ratio), ("at most", bound.max, bound.max_ratio)):
        shares = "" if ratio is None else f"{ratio:g} of the base recipe's"
        if value is not None:
            parts.append(f"{word} {value:.4g}" + (f" ({shares})" if shares else ""))
        elif shares:
            parts.append(f"{word} {shares}")
    return " and ".join(parts)


def short(value: float) -> str:
    """Say a large count: `55.7M`."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return number(value)


def interval(summary: Summary) -> str:
    """Say a mean with its interval: `12.3 [11.9, 12.8]`; a value without spread alone, nothing as nothing.

    There are as many decimals as the mean needs for three digits, or the interval's half width for one.
    """
    if summary.n == 0:
        return ""
    if summary.n < 2 or summary.low == summary.high:
        return number(summary.mean)
    if not 1e-3 <= abs(summary.mean) < 1e5:
        return f"{number(summary.mean)} [{number(summary.low)}, {number(summary.high)}]"
    decimals = max(_decimals(summary.mean, 3), _decimals(summary.high - summary.mean, 1))
    mean, low, high = (_fixed(value, decimals) for value in (summary.mean, summary.low, summary.high))
    return f"{mean} [{low}, {high}]"


def duration(hours: float) -> str:
    """Say a time in the unit that suits it; nothing if it is not known."""
    if math.isnan(hours):
        return ""
    if hours < 0.025:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:,.1f} h"


def listed(things: Sequence[Any]) -> str:
    """Join with commas and an `and` before the last."""
    words = [str(thing) for thing in things]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def counted(count: int, thing: str) -> str:
    """Say how many: `1 repeat`, `3 repeats`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Name each dotted path by its last part, where that is enough to tell it from the others."""
    paths = list(paths)
    leaves = [path.rpartition(".")[2] for path in paths]
    return {path: leaf if leaves.count(leaf) == 1 else path for path, leaf in zip(paths, leaves, strict=True)}


def _decimals(value: float, digits: int) -> int:
    """Decimals with which a value shows so many significant digits."""
    return max(0, min(9, digits - 1 - math.floor(math.log10(abs(value))))) if value else 0


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"
