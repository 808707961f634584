"""Numbers, intervals and lists as text for people."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from scrimp_platform.search.records import Preparation
from scrimp_platform.search.stats import Summary
from scrimp_spaces.constraints import Bound


def number(value: Any) -> str:
    """Format a number with three significant digits; nan is empty, and other values are converted with `str`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    if 1e-4 <= abs(value) < 1e5:
        return _fixed(value, _decimals(value, 3))
    return f"{value:.3g}"


def bound(limits: Bound) -> str:
    """Format the limits of a constraint: `at least 0.1 and at most 0.9`."""
    sides = (("at least", limits.min, limits.min_ratio), ("at most", limits.max, limits.max_ratio))
    parts = []
    for words, value, ratio in sides:
        relative = ""
        if ratio is not None:
            relative = f"{ratio:g} of the base recipe's"

        if value is None and relative:
            parts.append(f"{words} {relative}")
        elif value is not None and relative:
            parts.append(f"{words} {value:.4g} ({relative})")
        elif value is not None:
            parts.append(f"{words} {value:.4g}")
    return " and ".join(parts)


def counted(number: int, one: str, several: str) -> str:
    """Format how many there are of something: `1 reference`, `3 proxies`."""
    return f"{number:,} {one if number == 1 else several}"


def preparations(done: Sequence[Preparation]) -> str:
    """Format how many references and proxies there are, and what they have cost."""
    statuses = Counter((own.kind, own.status) for own in done)
    names = {"reference": "references", "proxy": "proxies"}
    parts = [f"{counted(n, kind, names[kind])} {status}" for (kind, status), n in statuses.items()]
    hours = sum(own.device_hours for own in done)
    return f"{', '.join(parts)}: {number(hours)} device-hours, shared by all recipes that need them"


def count(value: float) -> str:
    """Format a large count: `55.7M`."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return number(value)


def interval(summary: Summary) -> str:
    """Format a mean with its interval: `12.3 [11.9, 12.8]`; a mean without spread alone, and no values as empty.

    The number of decimals shows three digits of the mean and at least one of the interval's half width.
    """
    if summary.n == 0:
        return ""
    if math.isnan(summary.low) or summary.low == summary.high:
        return number(summary.mean)
    if not 1e-3 <= abs(summary.mean) < 1e5:
        return f"{number(summary.mean)} [{number(summary.low)}, {number(summary.high)}]"

    decimals = max(_decimals(summary.mean, 3), _decimals(summary.high - summary.mean, 1))
    mean = _fixed(summary.mean, decimals)
    low = _fixed(summary.low, decimals)
    high = _fixed(summary.high, decimals)
    return f"{mean} [{low}, {high}]"


def duration(hours: float) -> str:
    """Format a time in seconds, minutes or hours; nan is empty."""
    if math.isnan(hours):
        return ""
    if hours < 0.025:
        return f"{hours * 3600:.0f} s"
    if hours < 1.5:
        return f"{hours * 60:.0f} min"
    return f"{hours:,.1f} h"


def probability(value: float) -> str:
    """Format a probability with two decimals; one that rounds to 0 or 1 as a bound, since nothing is certain."""
    if value < 0.005:
        return "below 0.01"
    if value >= 0.995:
        return "over 0.99"
    return f"{value:.2f}"


def cardinal(number_of_items: int) -> str:
    """Format a small number of items as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number_of_items] if number_of_items < len(words) else f"{number_of_items:,}"


def conjunction(items: Sequence[Any]) -> str:
    """Join items with commas and an `and` before the last."""
    *others, last = [str(item) for item in items] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def plural(number_of_items: int, noun: str) -> str:
    """Format a number of items: `1 repeat`, `3 repeats`."""
    ending = "" if number_of_items == 1 else "s"
    return f"{number_of_items:,} {noun}{ending}"


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Name each dotted path by its last part if that is unique among the paths, or else by the whole path."""
    paths = list(paths)
    leaves = [path.rpartition(".")[2] for path in paths]
    names = {}
    for path, leaf in zip(paths, leaves, strict=True):
        names[path] = leaf if leaves.count(leaf) == 1 else path
    return names


def _decimals(value: float, digits: int) -> int:
    """Return the number of decimals that show so many significant digits of a value."""
    if not value:
        return 0
    magnitude = math.floor(math.log10(abs(value)))
    return max(0, min(9, digits - 1 - magnitude))


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"
