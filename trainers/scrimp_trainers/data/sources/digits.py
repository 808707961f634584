"""The 1,797 handwritten digits that come with scikit-learn: per line, 8x8 pixels of 0 to 16, then the digit."""

import gzip

import numpy as np

from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import Tree


def recognises(tree: Tree) -> bool:
    """Whether this is scikit-learn's file."""
    return tree.names == ["digits.csv.gz"]


def read(tree: Tree) -> Source:
    """Read the images, scaled from 0..16 to 0..255."""
    text = gzip.decompress(tree.read("digits.csv.gz")).decode()
    table = np.array([line.split(",") for line in text.split()], dtype=np.uint8)
    pixels = (table[:, :64].astype(np.float64) * (255 / 16)).round().astype(np.uint8)
    images = pixels.reshape(-1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    classes = [str(digit) for digit in range(10)]
    return source_from_arrays("digits", [("digits", images)], labels, classes)
