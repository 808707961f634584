"""The 1,797 real handwritten digits that come with scikit-learn: 8x8 pixels of 0 to 16, then the digit, a line each."""

import gzip

import numpy as np

from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import Tree


def recognises(tree: Tree) -> bool:
    """Whether this is scikit-learn's file."""
    return tree.names == ["digits.csv.gz"]


def read(tree: Tree) -> Source:
    """Read it; 0 to 16 becomes 0 to 255."""
    text = gzip.decompress(tree.read("digits.csv.gz")).decode()
    table = np.array([line.split(",") for line in text.split()], dtype=np.uint8)
    images = (table[:, :64].astype(np.float64) * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    return source_from_arrays("digits", [("digits", images)], labels, [str(digit) for digit in range(10)])
