"""What a sweep of the comparison is given of earlier ones, which are whole sweeps without a warm start."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.search import tables
from scrimp_platform import store
from scrimp_platform.search import warm_start
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder
from scrimp_spaces.space import Space

UNRELATED_SEEDS = 3
FIRST_UNRELATED = 500
"""Seeds of synthetic surfaces that no cell has."""


def related(surface: str) -> list[str]:
    """Return the other tables with the same fields.

    Raises
    ------
    LookupError
        If there is none.
    """
    if surface not in tables.SOURCES:
        raise LookupError(f"no surface is related to {surface}")
    part = tables.SOURCES[surface].part
    return [name for name, other in tables.SOURCES.items() if name != surface and other.part == part]


def unrelated_seeds(seed: int) -> list[int]:
    """Return the seeds of synthetic surfaces that have nothing to do with that of this seed."""
    return [FIRST_UNRELATED + UNRELATED_SEEDS * seed + i for i in range(UNRELATED_SEEDS)]


def describe(folder: SweepFolder, space: Space, name: str) -> None:
    """Write the description of a sweep, with which it can be read back."""
    description = {"name": name, "id": name, "space_name": name, "space": space.model_dump(mode="json"), "seed": 0}
    description |= {"dataset": {"name": name, "content_hash": "", "folder": "."}, "versions": {}}
    store.write_json(folder.description, description | {"started": time.time(), "driver_started": time.time()})


def given(folders: Sequence[Path], space: Space) -> WarmStart:
    """Return what a sweep of this space is given of those in these folders."""
    names = [folder.name for folder in folders]
    return warm_start.collect(names, [SweepFolder(folder) for folder in folders], [], space)


def reversed_order(start: WarmStart) -> WarmStart:
    """Return a warm start that misleads as much as it can: the worst recipes are given as the best."""
    sweeps = [dataclasses.replace(sweep, recipes=sweep.recipes[::-1]) for sweep in start.sweeps]
    worst = itertools.chain.from_iterable(zip(*(sweep.recipes for sweep in sweeps), strict=False))
    return dataclasses.replace(start, sweeps=tuple(sweeps), first=tuple(itertools.islice(worst, len(start.first))))
