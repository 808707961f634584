"""Equal and nearly equal images of a source, which must not be on both sides of a split.

Two images are near if their mean absolute difference is at most `near`. Candidates come from sums over blocks of
pixels: the absolute differences of two images' block sums add up to no more than those of their pixels, and no sum of
them with signs is larger than that. So a search among signed sums, each to within that radius, misses no pair.
Candidates are then compared pixel by pixel.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COARSE, FINE = 4, 8
"""Blocks a side: of the search tree, and of the test that each candidate must pass before pixels are read."""
ROWS = 512
"""Images whose neighbours are looked for at once."""
CHUNK_BYTES = 2**26
"""Bytes of pixels compared at once."""


@dataclass(frozen=True)
class Duplicates:
    """Which of n images repeat others."""

    group: np.ndarray
    """int64 [n]: images with the same number are linked by pairs that are equal or near."""
    beside_test: np.ndarray
    """bool [n]: images that equal or nearly equal one of the source's own test images and are none of them."""
    equal: int
    """Images that equal an earlier one."""
    near: int
    """Distinct images less the groups: in a pair of near images one counts."""

    @property
    def largest(self) -> int:
        """Images in the largest group."""
        return int(np.bincount(self.group).max())


def search(pixels: np.ndarray, near: float, test: np.ndarray | None = None) -> Duplicates:
    """Find the duplicates among images.

    Parameters
    ----------
    pixels
        uint8 [n, ...], in memory or in a file.
    near
        Largest mean absolute difference of near pairs, of 255; 0 looks for equal images alone.
    test
        bool [n]: the source's own test images.
    """
    test = np.zeros(len(pixels), dtype=bool) if test is None else test
    first, inverse = _distinct(pixels)

    # Of equal images one stands for all; it counts as test or training image if any of them does.
    has_test, has_other = (np.bincount(inverse, weights=side) > 0 for side in (test, ~test))
    beside = has_test & has_other
    group = np.arange(len(first))
    if near > 0 and len(first) > 1:
        group = _linked(pixels, first, near, has_test, has_other, beside)

    groups = len(np.unique(group))
    return Duplicates(group[inverse], beside[inverse] & ~test, len(pixels) - len(first), len(first) - groups)


def _distinct(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the first of each set of equal images, and which of these each image equals."""
    seen: dict[bytes, int] = {}
    inverse = np.empty(len(pixels), dtype=np.int64)
    first: list[int] = []
    for position, image in enumerate(pixels):
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        if digest not in seen:
            seen[digest] = len(first)
            first.append(position)
        inverse[position] = seen[digest]
    return np.array(first, dtype=np.int64), inverse


def _linked(
    pixels: np.ndarray,
    first: np.ndarray,
    near: float,
    has_test: np.ndarray,
    has_other: np.ndarray,
    beside: np.ndarray,
) -> np.ndarray:
    """Return the group of each distinct image, and mark those `beside` a test image."""
    import scipy.sparse as sparse
    from scipy.sparse.csgraph import connected_components

    most = int(near * pixels[0].size)
    at_once = max(1, CHUNK_BYTES // pixels[0].size)
    group = np.arange(len(first))
    fine = _blocks(pixels, first, FINE)

    def matters(pairs: np.ndarray) -> np.ndarray:
        """Which pairs would, if near, link two groups or mark a further image."""
        unmarked = has_other & ~beside
        across = (has_test[pairs] & unmarked[pairs[:, ::-1]]).any(axis=1)
        return across | (group[pairs[:, 0]] != group[pairs[:, 1]])

    for pairs in _candidates(_blocks(pixels, first, COARSE), most):
        # Of many images that are all near each other, most pairs no longer matter once the first are compared.
        while len(pairs := pairs[matters(pairs)]):
            part, pairs = pairs[:at_once], pairs[at_once:]
            part = part[np.abs(fine[part[:, 0]] - fine[part[:, 1]]).sum(axis=1) <= most]
            part = part[_distance(pixels[first[part[:, 0]]], pixels[first[part[:, 1]]]) <= most]
            beside[part[:, ::-1][has_test[part]]] = True
            graph = sparse.coo_array((np.ones(len(part), dtype=bool), group[part].T), shape=(len(first),) * 2)
            group = connected_components(graph, directed=False)[1][group]
    return group


def _candidates(coarse: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield int64 [k, 2]: pairs i < j of images, with all whose block sums [n, d] differ by at most `most` in L1."""
    from scipy.linalg import hadamard
    from scipy.spatial import KDTree

    # Signs as in a Hadamard matrix: images that differ at all differ in some of these sums, and a tree prunes by each.
    size = 1 << (coarse.shape[1] - 1).bit_length()
    signed = coarse @ hadamard(size)[: coarse.shape[1]]
    tree = KDTree(signed)
    for start in range(0, len(signed), ROWS):
        rows = KDTree(signed[start : start + ROWS])
        # The sums are whole numbers, so half of one allows for rounding and adds no pair.
        entries = rows.sparse_distance_matrix(tree, most + 0.5, p=np.inf, output_type="ndarray")
        pairs = np.stack([entries["i"] + start, entries["j"]], axis=1)
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def _blocks(pixels: np.ndarray, first: np.ndarray, side: int) -> np.ndarray:
    """Return the sums of the blocks of each image, int32 [n, side * side or less]."""
    height, width = pixels.shape[1:3]
    channels = pixels[0].size // (height * width)
    rows, columns = (np.unique(np.arange(side) * length // side) for length in (height, width))
    sums = np.empty((len(first), len(rows) * len(columns)), dtype=np.int32)
    step = max(1, CHUNK_BYTES // (pixels[0].size * 8))
    for start in range(0, len(first), step):
        part = pixels[first[start : start + step]].reshape(-1, height, width, channels).sum(axis=3, dtype=np.int64)
        blocks = np.add.reduceat(np.add.reduceat(part, rows, axis=1), columns, axis=2)
        sums[start : start + step] = blocks.reshape(len(part), -1)
    return sums


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the sums of absolute differences of images, [k]."""
    larger, smaller = np.maximum(one, other), np.minimum(one, other)
    return (larger - smaller).sum(axis=tuple(range(1, one.ndim)), dtype=np.int64)
