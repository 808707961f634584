"""The six small datasets of the recorded curves, made of originals that the project does not contain.

All but the digits are 16x16. Drawings are light lines on black: strokes are fitted into the canvas and drawn with
Pillow, `WIDTH` pixels wide and without anti-aliasing, on a canvas `FINER` times as fine, and its blocks are averaged.
"""

import gzip
import io
import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import atomic_file, locked
from scrimp_trainers.data import manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare

ORIGINALS = {
    "digits": (),
    "cifar10": ("cifar10/lossless4k/cifar10_batch_0.png", "cifar10/lossless4k/labels.npz"),
    "omniglot": ("omniglot/images_background_small1.zip",),
    "vmnist": ("vmnist/vmnist.npz",),
    "kanji": ("sketch_rnn/kanji.rdp200.flat.npz",),
    "quickdraw": ("quickdraw25/quickdraw_345x25_simplified.ndjson.gz",),
}
"""The datasets, and the files in the folder of originals that each is made of."""
NEAR = 4.0
"""What `prepare` takes as near copies in line drawings; see docs/datasets.md."""
SIZE = 16
FINER = 8
WIDTH = 8
"""Of a line, on the finer canvas: one pixel of the image."""
MARGIN = 8
"""Between the strokes and the edge, on the finer canvas."""
DRAWINGS = 3000
"""Digits and kanji that are drawn, the first of their files."""
WORDS = 120
"""Words of Quick, Draw! whose 25 drawings are taken, the first of the file."""
OMNIGLOT_BLOCK = 7
"""Side of a block of an Omniglot image, padded from 105 to 112 pixels, that becomes one pixel."""
OMNIGLOT_GAIN = 1.5
"""Factor on the share of ink in it, since the lines are thin."""

Strokes = Sequence[np.ndarray]
"""A drawing: for each stroke its points, [n, 2]."""


def dataset(name: str, originals: Path, folder: Path) -> Path:
    """Return the folder of a prepared dataset, which is made if need be.

    Raises
    ------
    UserError
        If an original is not there.
    """
    out = folder / name
    with locked(out):
        if not (out / manifest.MANIFEST_FILE).is_file():
            prepare(_source(name, originals, folder), out, Options(near=NEAR, name=name))
    return out


def _source(name: str, originals: Path, folder: Path) -> str:
    """Return what `prepare` reads: scikit-learn's digits, or an archive of the images."""
    if name == "digits":
        return name
    for file in ORIGINALS[name]:
        if not (originals / file).is_file():
            raise UserError(f"{name}: there is no {originals / file}; name the folder of originals with --originals")

    images, labels = read_images(name, originals)
    archive = folder / "sources" / f"{name}.npz"
    with atomic_file(archive) as part, part.open("wb") as file:
        np.savez(file, images=images, labels=labels)
    return str(archive)


def read_images(name: str, originals: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a dataset, uint8 [N, 16, 16] or [N, 16, 16, 3], and their labels [N]."""
    paths = [originals / file for file in ORIGINALS[name]]
    if name == "cifar10":
        return _cifar10(paths[0].parent, paths[1])
    if name == "omniglot":
        return _omniglot(paths[0])

    drawings = {"vmnist": _vmnist, "kanji": _kanji, "quickdraw": _quickdraw}[name](paths[0])
    labels, strokes = zip(*drawings, strict=True)
    return np.stack([render(drawing) for drawing in strokes]), np.array(labels)


def render(strokes: Strokes) -> np.ndarray:
    """Draw strokes as light lines on black, fitted into the image with their proportions: uint8 [16, 16]."""
    # Scale and shift so that the longer side fills the canvas up to its margin.
    points = np.concatenate(strokes).astype(np.float64)
    low = points.min(axis=0)
    extent = points.max(axis=0) - low
    canvas = SIZE * FINER
    scale = (canvas - 1 - 2 * MARGIN) / max(extent.max(), 1e-9)
    shift = (canvas - 1 - scale * extent) / 2

    # Draw on the finer canvas; a stroke of a single point is a dot.
    picture = Image.new("L", (canvas, canvas))
    draw = ImageDraw.Draw(picture)
    for stroke in strokes:
        placed = np.rint((stroke - low) * scale + shift).astype(int).tolist()
        corners = [tuple(point) for point in placed]
        draw.line(corners, fill=255, width=WIDTH, joint="curve")
        for x, y in (corners[0], corners[-1]):
            draw.ellipse((x - WIDTH // 2, y - WIDTH // 2, x + WIDTH // 2, y + WIDTH // 2), fill=255)

    return block_means(np.asarray(picture), FINER)


def block_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Average square blocks of pixels [..., H, W], exactly: the same on every machine."""
    *rest, height, width = pixels.shape
    blocks = pixels.reshape(*rest, height // side, side, width // side, side).astype(np.int64)
    sums = blocks.sum(axis=(-3, -1))
    return ((2 * sums + side * side) // (2 * side * side)).astype(np.uint8)


def _cifar10(folder: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return 4,000 training images of CIFAR-10, as PNGs of a thousand each, at half their size; labels are classes."""
    files = sorted(folder.glob("cifar10_batch_*.png"))
    batches = [np.asarray(Image.open(file).convert("RGB")).reshape(-1, 32, 32, 3) for file in files]
    channels_first = np.concatenate(batches).transpose(0, 3, 1, 2)
    with np.load(labels) as content:
        return block_means(channels_first, 32 // SIZE).transpose(0, 2, 3, 1), content["labels"]


def _omniglot(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return Omniglot's five alphabets of a small background set; labels are characters."""
    images, labels = [], []
    with zipfile.ZipFile(file) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
            ink = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L")) < 128
            padded = np.pad(ink, ((3, 4), (3, 4)))
            share = block_means(np.uint8(255) * padded, OMNIGLOT_BLOCK)
            images.append(np.minimum(255, OMNIGLOT_GAIN * share).astype(np.uint8))
            alphabet, character = name.split("/")[-3:-1]
            labels.append(f"{alphabet} {character}")
    return np.stack(images), np.array(labels)


def _vmnist(file: Path) -> Iterator[tuple[int, Strokes]]:
    """Yield MNIST's digits as pen strokes; labels are digits."""
    with np.load(file) as content:
        steps, labels = content["train"].astype(np.int64), content["train_labels"]
        for label, (start, end) in zip(labels, _ranges(content["train_offsets"]), strict=False):
            yield int(label), _strokes(steps[start:end])


def _kanji(file: Path) -> Iterator[tuple[int, Strokes]]:
    """Yield kanji as pen strokes; a label is the number of strokes."""
    with np.load(file) as content:
        steps = content["train"].astype(np.float64)
        for start, end in _ranges(content["train_offsets"]):
            strokes = _strokes(steps[start:end])
            yield len(strokes), strokes


def _quickdraw(file: Path) -> Iterator[tuple[str, Strokes]]:
    """Yield drawings of the first words of Quick, Draw!; labels are words."""
    words: set[str] = set()
    with gzip.open(file, "rt") as lines:
        for line in lines:
            drawing = json.loads(line)
            words.add(drawing["word"])
            if len(words) > WORDS:
                return
            yield drawing["word"], [np.array(stroke).T for stroke in drawing["drawing"]]


def _ranges(offsets: np.ndarray) -> list[tuple[int, int]]:
    return list(itertools.pairwise(offsets[: DRAWINGS + 1].tolist()))


def _strokes(steps: np.ndarray) -> Strokes:
    """Split pen steps, of which the third number says that a stroke ends, into strokes of absolute points."""
    points = np.cumsum(steps[:, :2], axis=0)
    ends = np.flatnonzero(steps[:, 2] > 0) + 1
    return [stroke for stroke in np.split(points, ends) if len(stroke)]
