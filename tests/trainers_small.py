"""A recipe and images small enough that a training step takes milliseconds."""

from collections.abc import Iterator

import torch

from scrimp_trainers.common.seeds import seed_of
from scrimp_trainers.data.batch import Batch
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.training.state import State, initial_state

CPU = torch.device("cpu")


def small(preset: str = "tiny-edm", **values: object) -> Recipe:
    """Return a preset with the smallest network and `values`, in which `__` stands for a dot."""
    base = {"network.channels": 8, "network.multipliers": [1, 2], "training.batch_size": 8, "training.kimg": 0.04}
    return load(preset).replace(base | {name.replace("__", "."): value for name, value in values.items()})


def small_state(recipe: Recipe, number: int = 0, classes: int = 0) -> State:
    return initial_state(recipe, image_size=8, channels=1, classes=classes, seed=number, device=CPU)


def random_batches(batch_size: int, *, rank: int = 0, world: int = 1, start: int = 0) -> Iterator[Batch]:
    """Give batches of plain grey images that depend on the step alone, in equal shares to the ranks."""
    share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
    while True:
        generator = torch.Generator().manual_seed(seed_of("batch", start))
        images = torch.randint(256, (batch_size, 1, 1, 1), generator=generator, dtype=torch.uint8).repeat(1, 1, 8, 8)
        labels = torch.randint(10, (batch_size,), generator=generator)
        yield Batch(
            images[share], labels[share], torch.arange(batch_size)[share], torch.zeros(batch_size).bool()[share]
        )
        start += 1
