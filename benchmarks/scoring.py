"""Seconds per 1,000 scored samples: from the sampler to the extractor in memory, against a folder of PNGs.

Their side is the usual route with torch-fidelity: sample, write PNGs, call `calculate_metrics` on the folder. The
network, the sampler, the extractor (Inception-v3 with seeded random weights) and the scores are the same, and both
have the reference's statistics cached; ours measures memorisation besides.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics
from torch_fidelity import feature_extractor_inceptionv3 as inception

from benchmarks.data import make_dataset
from benchmarks.measure import Comparison, Side, interleave, show
from scrimp_trainers import device as devices
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.metrics.score import Scorer
from scrimp_trainers.metrics.settings import Scoring
from scrimp_trainers.networks.unet import UNet
from scrimp_trainers.recipe import Recipe, load
from scrimp_trainers.sample import generate, save_images
from scrimp_trainers.train import start

SIZE, IMAGES, BATCH = 32, 256, 32
SAMPLES = {"cpu": 64, "cuda": 5000}
"""Samples a round; the seconds are scaled to 1,000."""


def main(device: str, threads: int, rounds: int) -> None:
    """Measure and print."""
    count = SAMPLES[device]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder, IMAGES, SIZE)
        write_inception(folder / "inception.pth")
        sides = Side(threads, ours, folder, device, count), Side(threads, theirs, folder, device, count)
        seconds = interleave(*sides, rounds, 1)
        for side in sides:
            side.close()
    mine, other = ([1000 * second / count for second in side] for side in seconds)
    what = f"Inception-v3, {count} samples a round, {sampler().nfe} evaluations each"
    show(
        "Seconds per 1,000 scored samples",
        [Comparison(what, "s", mine, other, "below 1")],
        "PNG folder, torch-fidelity",
    )


def ours(folder: Path, device: str, count: int) -> Iterator[object]:
    """Score samples as a repeat does."""
    network = model(device)
    scoring = Scoring(extractor="inception", weights=folder / "inception.pth", samples=count, batch_size=BATCH)
    scorer = Scorer(open_dataset(folder / "dataset"), scoring, device)
    while True:
        yield scorer.score(generate(network, sampler(), count, seed=0, batch_size=BATCH))


def theirs(folder: Path, device: str, count: int) -> Iterator[object]:
    """Score samples by way of a folder of PNGs."""
    network = model(device)
    while True:
        with tempfile.TemporaryDirectory() as pngs:
            samples = Path(pngs) / "samples"
            save_images(generate(network, sampler(), count, seed=0, batch_size=BATCH), samples)
            (samples / "grid.png").unlink()
            yield calculate_metrics(
                input1=str(samples),
                input2=str(folder / "pictures"),
                input2_cache_name="reference",
                cache_root=str(folder / "cache"),
                feature_extractor="inception-v3-compat",
                feature_extractor_weights_path=str(folder / "inception.pth"),
                batch_size=BATCH,
                cuda=device == "cuda",
                fid=True,
                kid=True,
                kid_subset_size=count,
                isc=True,
                prc=True,
                verbose=False,
            )


def model(device: str) -> UNet:
    """Return a small network for 32x32 RGB images."""
    where = devices.pick(device)
    return start(sampler(), image_size=SIZE, channels=3, classes=0, seed=0, device=where).ema


def sampler() -> Recipe:
    """Return the recipe that both sides sample with."""
    return load("tiny-edm")


def write_inception(path: Path) -> None:
    """Write seeded random weights in the form of the published file, scaled so that activations stay finite."""
    torch.manual_seed(0)
    with (
        mock.patch.object(inception, "load_state_dict_from_url", return_value={}),
        mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        state = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    for value in state.values():
        if value.dim() > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
    torch.save(state, path)
