"""Pen drawings per second of our loop against a plain one in PyTorch, which pads each batch to its longest drawing.

Both train ChiroDiff's network, with the same numbers of weights, on the same drawings, with AdamW, a masked loss and an
average of the weights. The plain loop draws batches at random and runs `nn.GRU` over the padding as well, so that its
way back begins there; ours has batches of about one length, and skips their padding.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.measure import Comparison, Side, interleave, show
from scrimp_trainers.codecs.strokes import StrokeCodec
from scrimp_trainers.common import device as devices
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.data.manifest import MANIFEST_FILE, Manifest, Split
from scrimp_trainers.data.modalities.strokes import StrokeModality
from scrimp_trainers.data.shards import Sample, write_shards
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.training.inputs import Prepared
from scrimp_trainers.training.loop import train
from scrimp_trainers.training.state import initial_state

DRAWINGS = 4096
MOST_POINTS = 299
MEAN_LENGTH = 91.0
SHAPE = 5.0
"""Of a gamma distribution of lengths: mean and spread are those of 7,649 drawings of 344 words of Quick, Draw!."""
PEER = "plain PyTorch"
STEPS = {"cpu": 4, "cuda": 50}
"""Steps a round."""


def main(device: str, threads: int, rounds: int) -> None:
    """Measure and print."""
    recipe = load("chirodiff-quickdraw").replace({"training.kimg": 1e6})
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "dataset")
        mine = Side(threads, ours, recipe, Path(folder) / "dataset", device)
        other = Side(threads, theirs, recipe, Path(folder) / "dataset", device)
        seconds = interleave(mine, other, rounds, STEPS[device])
        mine.close()
        other.close()
    size = recipe.training.batch_size
    rates = [[size / each for each in side] for side in seconds]
    what = f"ChiroDiff, batch {size}, drawings of {MEAN_LENGTH:g} points"
    show("Training on pen drawings", [Comparison(what, "drawings/s", *rates, goal="1.5")], PEER)


def write_dataset(folder: Path) -> None:
    """Write made-up drawings of many lengths as a dataset."""
    random = np.random.default_rng(0)
    lengths = random.gamma(SHAPE, MEAN_LENGTH / SHAPE, DRAWINGS).astype(int).clip(2, MOST_POINTS)
    drawings = [random.normal(size=(length, 3)).astype(np.float32).cumsum(0) for length in lengths]
    modality = StrokeModality(MOST_POINTS)
    folder.mkdir()
    samples = (Sample(f"{number:05d}", modality.encode(item), None) for number, item in enumerate(drawings))
    manifest = Manifest(
        name="drawings",
        modality="strokes",
        content_hash="",
        size=MOST_POINTS,
        channels=3,
        lengths=np.bincount(lengths, minlength=MOST_POINTS + 1).tolist(),
        classes=None,
        splits={
            "train": Split(count=DRAWINGS, per_class=None, shards=write_shards(samples, folder, "train", modality))
        },
        reference="train",
        provenance={},
    )
    (folder / MANIFEST_FILE).write_text(manifest.to_json())


def ours(recipe: Recipe, folder: Path, device: str) -> Iterator[object]:
    """Set up and run our loop. Yields the steps."""
    where = devices.select_device(device)
    state = initial_state(recipe, image_size=MOST_POINTS, channels=3, classes=0, seed=0, device=where)
    drawn = batches(open_dataset(folder), batch_size=recipe.training.batch_size, seed=0, device=where)
    return train(recipe, state, drawn, Prepared(codec=StrokeCodec("delta", 0.8)), device=where)


class PaddedGRU(nn.Module):
    """The network as one writes it first: its GRU runs over padding, too."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(13, 96, 3, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(192, 96)
        self.output = nn.Linear(104, 3)
        self.register_buffer("frequencies", 8 * torch.pi * torch.randn(4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise in steps x [B, n, 3] at t [B] in [0, 1]."""
        angles = t[:, None] * self.frequencies  # type: ignore[operator]
        time = torch.cat([angles.sin(), angles.cos()], 1)[:, None].expand(-1, x.shape[1], -1)
        hidden, _ = self.gru(torch.cat([x[..., :2].cumsum(1), x, time], -1))
        return self.output(torch.cat([self.hidden(hidden), time], -1))


def theirs(recipe: Recipe, folder: Path, device: str) -> Iterator[object]:
    """Set up and run the plain loop. Yields the losses."""
    items, _, _ = open_dataset(folder).items("train")
    assert items.mask is not None
    drawings = [values[:, mask[0]].T for values, mask in zip(items.values, items.mask, strict=True)]
    network = PaddedGRU().to(device)
    parameters = list(network.parameters())
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.optimizer.lr, weight_decay=recipe.optimizer.weight_decay)
    signal = (1 - torch.linspace(1e-4, 0.02, 1000, device=device)).cumprod(0)

    while True:
        for numbers in torch.randperm(len(drawings)).split(recipe.training.batch_size):
            chosen = [drawings[number] for number in numbers.tolist()]
            yield _plain_step(network, optimizer, averages, chosen, signal)


def _plain_step(
    network: PaddedGRU, optimizer: torch.optim.Optimizer, averages: list[Tensor], drawings: list[Tensor], signal: Tensor
) -> float:
    lengths = torch.tensor([len(drawing) for drawing in drawings])
    points = pad_sequence(drawings, batch_first=True).to(signal.device)
    mask = (torch.arange(points.shape[1]) < lengths[:, None])[..., None].to(signal.device)
    steps = torch.cat([points[..., :2].diff(dim=1, prepend=torch.zeros_like(points[:, :1, :2])), points[..., 2:]], -1)

    t = torch.randint(0, 1000, (len(drawings),), device=signal.device)
    noise = torch.randn_like(steps)
    abar = signal[t][:, None, None]
    estimate = network(abar.sqrt() * steps + (1 - abar).sqrt() * noise, t / 1000)
    errors = ((estimate - noise).square() * mask).sum((1, 2)) / (3 * mask.sum((1, 2)))
    loss = errors.mean()

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for average, parameter in zip(averages, network.parameters(), strict=True):
            average.lerp_(parameter, 1e-4)
    return loss.item()
