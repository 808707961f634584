"""Pictures to measure with: made, not read, so that the benchmarks need nothing but this checkout."""

from pathlib import Path

import numpy as np
from PIL import Image

from scrimp_trainers.data.dataset import Dataset, open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare


def make_pictures(folder: Path, count: int, size: int, seed: int = 0) -> None:
    """Write RGB images as PNG files: soft shapes and some grain, which compress about as photographs do."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
        pixels = np.clip(soft + random.integers(-12, 13, soft.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.png")


def make_dataset(folder: Path, count: int, size: int) -> tuple[Path, Dataset]:
    """Make `count` pictures and a dataset of all of them; return the folder of pictures and the dataset."""
    make_pictures(folder / "pictures", count, size)
    prepare(str(folder / "pictures"), folder / "dataset", Options(holdout=0))
    return folder / "pictures", open_dataset(folder / "dataset")
