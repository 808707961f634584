"""Seconds per 1,000 scored samples: from the sampler to the extractor in memory, against a folder of PNGs.

Their side is the usual route with torch-fidelity: sample, write PNGs, call `calculate_metrics` on the folder. The
network, the sampler, the extractor (Inception-v3 with seeded random weights) and the scores are the same, and both
have the reference's statistics cached; ours measures memorisation besides.
"""

import tempfile
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from unittest import mock

import torch
from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics
from torch_fidelity import feature_extractor_inceptionv3 as inception

from benchmarks.data import make_dataset
from benchmarks.measure import Comparison, Side, interleave, show
from scrimp_trainers.common import device as devices
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.metrics.score import Scorer
from scrimp_trainers.networks.denoiser import Denoiser
from scrimp_trainers.recipe.recipe import Recipe, load
from scrimp_trainers.recipe.scoring import Scoring
from scrimp_trainers.sampling import generate, save_images
from scrimp_trainers.training.state import initial_state

SIZE, BATCH = 32, 32
STEPS = 2
"""Of the sampler, so few that its time does not hide the rest."""
FEW = 20
"""Samples of the first score, which is not measured: it fills the caches."""
MOST_ROUNDS = {"cpu": 2, "cuda": 7}
"""A round takes minutes on CPU cores."""


def main(device: str, threads: int, rounds: int, count: int = 1000, images: int = 256) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder, images, SIZE)
        write_inception(folder / "inception.pth")
        sides = Side(threads, ours, folder, device, count), Side(threads, theirs, folder, device, count)
        seconds = interleave(*sides, min(rounds, MOST_ROUNDS[device]), 1)
        for side in sides:
            side.close()
    what = f"32x32 RGB, {sampler().nfe} network evaluations a sample, Inception-v3, {images} reference images"
    found = Comparison(what, "s", *seconds, "below 1")
    show(f"Scoring, seconds per {count:,} samples", [found], "PNG folder, torch-fidelity")


def ours(folder: Path, device: str, count: int) -> Iterator[object]:
    """Score samples as a repeat does."""
    network = model(devices.select_device(device))
    scoring = Scoring(extractor="inception", weights=folder / "inception.pth", samples=count, batch_size=BATCH)
    scorer = Scorer(open_dataset(folder / "dataset"), scoring, device)
    for samples in chain([FEW], repeat(count)):
        yield scorer.score(generate(network, sampler(), samples, seed=0, batch_size=BATCH))


def theirs(folder: Path, device: str, count: int) -> Iterator[object]:
    """Score samples by way of a folder of PNGs."""
    network, pictures = model(torch.device(device)), folder / "pictures"
    subset = len(list(pictures.iterdir()))
    for samples in chain([FEW], repeat(count)):
        with tempfile.TemporaryDirectory() as pngs:
            written = Path(pngs) / "samples"
            save_images(generate(network, sampler(), samples, seed=0, batch_size=BATCH), written)
            (written / "grid.png").unlink()
            yield calculate_metrics(
                input1=str(written),
                input2=str(pictures),
                input2_cache_name="reference",
                cache_root=str(folder / "cache"),
                feature_extractor="inception-v3-compat",
                feature_extractor_weights_path=str(folder / "inception.pth"),
                batch_size=BATCH,
                cuda=device == "cuda",
                fid=True,
                kid=True,
                kid_subset_size=min(samples, subset),
                isc=True,
                prc=True,
                verbose=False,
            )


def model(device: torch.device) -> Denoiser:
    """Return a small network for 32x32 RGB images."""
    return initial_state(sampler(), image_size=SIZE, channels=3, classes=0, seed=0, device=device).ema


def sampler() -> Recipe:
    """Return the recipe that both sides sample with."""
    return load("tiny-edm").replace({"sampler.steps": STEPS})


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
