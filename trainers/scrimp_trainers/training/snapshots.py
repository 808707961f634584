"""Snapshots of the power-function averages of a training, and averages of other widths made of them.

They lie in the folder `snapshots/` of a repeat, a file each, named by the images seen. As in EDM2 they are kept in half
precision, which changes a number by at most 0.05% or 3e-8.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_file
from scrimp_trainers.recipe.recipe import Recipe
from scrimp_trainers.techniques import sparsity
from scrimp_trainers.training.posthoc_ema import (
    LARGEST_ERROR,
    WIDTHS,
    Array,
    Average,
    PowerAverages,
    coefficients,
    error_bound,
    tensor_name,
)

FOLDER = "snapshots"
SUFFIX = ".safetensors"


def due(recipe: Recipe) -> frozenset[int]:
    """Return the numbers of images after which a training keeps snapshots: evenly spaced, the last one at its end."""
    count = recipe.ema.snapshots
    batch = recipe.training.batch_size
    total = recipe.training.kimg * 1000
    return frozenset(math.ceil(total * number / count / batch) * batch for number in range(1, count + 1))


def write(repeat: Path, averages: PowerAverages, images: int) -> None:
    """Keep the averages as they are now. A kill at any moment leaves the whole file or none."""
    tensors = {name: _halved(average.cpu().contiguous()) for name, average in averages.tensors().items()}
    metadata = {"digest": weights.digest_of(tensors)}
    with atomic_file(_file(repeat, images)) as part:
        save_file(tensors, part, metadata)


def drop_later(repeat: Path, images: int) -> None:
    """Remove what was kept after so many images: a training that goes on from there keeps it again."""
    for snapshot in _kept(repeat):
        if snapshot > images:
            _file(repeat, snapshot).unlink()


@dataclass(frozen=True)
class Snapshots:
    """The snapshots of a repeat up to some time, at which other averages are made of them."""

    repeat: Path
    time: int
    """Images seen."""
    images: tuple[int, ...]
    """How many images had been seen at each snapshot, in order."""

    @classmethod
    def find(cls, repeat: Path, time: int) -> "Snapshots":
        """Find those in a repeat's folder."""
        return cls(repeat, time, tuple(images for images in _kept(repeat) if images <= time))

    def can_make(self, width: float) -> bool:
        """Whether an average of this width differs from the true one by no more than is allowed."""
        _, error = self._combination(width)
        return error <= LARGEST_ERROR

    def require(self, width: float) -> None:
        """Require that an average of this width can be made.

        Raises
        ------
        UserError
            If there are no snapshots, or too few for it.
        """
        _, error = self._combination(width)
        if error > LARGEST_ERROR:
            count = len(self.images)
            nearer = " or ".join(f"{own:g}" for own in WIDTHS)
            raise UserError(
                f"{self.repeat / FOLDER}: width {width:g} cannot be made of {count} snapshots: weights may be wrong by "
                f"{error:.1%} of the range in which they moved, more than {LARGEST_ERROR:.0%}; take a width nearer to "
                f"{nearer}, or train with a larger ema.snapshots"
            )

    def average(self, width: float) -> dict[str, Tensor]:
        """Return the trained weights, averaged with this width up to that time: fp32, on the CPU.

        Raises
        ------
        UserError
            If there are too few snapshots for this width, or one is damaged.
        """
        self.require(width)
        factors, _ = self._combination(width)
        summed: dict[str, Tensor] = {}
        for images, of_widths in zip(self.images, factors, strict=True):
            _add(summed, _file(self.repeat, images), of_widths)
        return summed

    def _combination(self, width: float) -> tuple[Array, float]:
        """Return the factor on each snapshot's averages [snapshot, width], and `error_bound` of their sum."""
        if not self.images:
            raise UserError(f"{self.repeat}: has no {FOLDER}/; train it with ema.snapshots set, such as to 32")
        kept = [Average(own, images) for images in self.images for own in WIDTHS]
        wanted = Average(width, self.time)
        factors = coefficients(kept, wanted)
        bound = error_bound(kept, wanted, factors)
        return factors.reshape(len(self.images), len(WIDTHS)), bound


def put(averages: Mapping[str, Tensor], network: nn.Module, recipe: Recipe, where: Path) -> None:
    """Put averaged weights into a trained network. The weights that its masks have left at zero stay there.

    Raises
    ------
    UserError
        If they are not those of this network.
    """
    named = dict(network.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if name in averages}
    weights.require_same(averages, trained, where)

    masked = sparsity.maskable(recipe.sparsity, network) if recipe.sparsity.on else {}
    with torch.no_grad():
        for name, parameter in trained.items():
            average = averages[name].to(parameter.device)
            if name in masked:
                average = average * (parameter != 0)
            parameter.copy_(average)


def _add(summed: dict[str, Tensor], file: Path, factors: Sequence[float] | Array) -> None:
    """Add a snapshot's averages, times the factor of each width, to the sums."""
    tensors = _read(file)
    for width, factor in zip(WIDTHS, factors, strict=True):
        prefix = tensor_name(width, "")
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                parameter = name.removeprefix(prefix)
                part = float(factor) * tensor.float()
                summed[parameter] = summed[parameter] + part if parameter in summed else part


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
            stated = (content.metadata() or {}).get("digest")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {weights.one_line(error)}; remove it to do without") from None
    if stated != weights.digest_of(tensors):
        raise UserError(f"{file}: damaged; remove it to do without")
    return tensors


def _halved(average: Tensor) -> Tensor:
    """Return it in half precision, unless a number is too large for that."""
    half = average.half()
    return half if bool(half.isfinite().all()) else average


def _kept(repeat: Path) -> list[int]:
    """Return the images seen at each snapshot of a repeat, in order."""
    return sorted(int(file.stem) for file in (repeat / FOLDER).glob(f"[0-9]*{SUFFIX}"))


def _file(repeat: Path, images: int) -> Path:
    return repeat / FOLDER / f"{images:012d}{SUFFIX}"
