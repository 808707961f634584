"""Equal and nearly equal images of a source, which must not be on both sides of a split.

Two images are near if their mean absolute difference is at most `near`. Candidates come from sums over blocks of
pixels: the absolute differences of two images' block sums add up to no more than those of their pixels, so a search
among these sums misses no pair. Nor can one sum of all blocks, with whatever signs, differ by more: sorted by it, an
image is compared only with those that follow closely. Candidates are then compared pixel by pixel.

The time grows with the square of the number of images; how far apart they are makes less difference.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COARSE = 4
"""Blocks a side whose sums are compared for all pairs."""
FINER = (8, 16)
"""Those for the pairs that are left, before their pixels are read: line drawings differ little in large blocks."""
ROWS = 512
COLUMNS = 2**14
"""Images that are compared with so many others at once."""
PAIRS = 2**15
"""Candidates looked at at once."""
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


def find_duplicates(pixels: np.ndarray, near: float, test: np.ndarray | None = None) -> Duplicates:
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
    finer = [_blocks(pixels, first, side) for side in FINER]

    def matters(pairs: np.ndarray) -> np.ndarray:
        """Which pairs would, if near, link two groups or mark a further image."""
        unmarked = has_other & ~beside
        across = (has_test[pairs] & unmarked[pairs[:, ::-1]]).any(axis=1)
        return across | (group[pairs[:, 0]] != group[pairs[:, 1]])

    def link(pairs: np.ndarray) -> None:
        """Compare pixels, and join the groups of the pairs that are near."""
        nonlocal group
        near_pairs = pairs[_distance(pixels[first[pairs[:, 0]]], pixels[first[pairs[:, 1]]]) <= most]
        if len(near_pairs):
            beside[near_pairs[:, ::-1][has_test[near_pairs]]] = True
            links = np.ones(len(near_pairs), dtype=bool)
            graph = sparse.coo_array((links, group[near_pairs].T), shape=(len(first),) * 2)
            group = connected_components(graph, directed=False)[1][group]

    for pairs in _candidates(_blocks(pixels, first, COARSE), most):
        # Of many images that are all near each other, most pairs no longer matter once the first are compared.
        pairs = pairs[matters(pairs)]
        for sums in finer:
            pairs = pairs[np.abs(sums[pairs[:, 0]] - sums[pairs[:, 1]]).sum(axis=1) <= most]
        while len(pairs := pairs[matters(pairs)]):
            link(pairs[:at_once])
            pairs = pairs[at_once:]
    return group


def _candidates(coarse: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield int64 [k, 2]: pairs of images, with all whose block sums [n, d] differ by at most `most` in L1."""
    from scipy.spatial.distance import cdist

    key = _widest(coarse)
    order = np.argsort(key, kind="stable")
    key = key[order]
    sums = coarse[order].astype(np.float64)
    for start in range(0, len(sums), ROWS):
        rows = sums[start : start + ROWS]
        end = np.searchsorted(key, key[start + len(rows) - 1] + most, side="right")
        for other in range(start, end, COLUMNS):
            columns = sums[other : min(end, other + COLUMNS)]
            one, two = np.nonzero(cdist(rows, columns, "cityblock") <= most)
            pairs = np.stack([one + start, two + other], axis=1)
            pairs = order[pairs[pairs[:, 0] < pairs[:, 1]]]
            for part in range(0, len(pairs), PAIRS):
                yield pairs[part : part + PAIRS]


def _widest(coarse: np.ndarray) -> np.ndarray:
    """Return the sum of the blocks, with signs, in which images differ most: of those of a Hadamard matrix."""
    from scipy.linalg import hadamard

    size = 1 << (coarse.shape[1] - 1).bit_length()
    signed = coarse.astype(np.int64) @ hadamard(size)[: coarse.shape[1]]
    return signed[:, signed.std(axis=0).argmax()]


def _blocks(pixels: np.ndarray, first: np.ndarray, side: int) -> np.ndarray:
    """Return the sums of the blocks of each image, int32 [n, side * side or less]."""
    height, width = pixels.shape[1:3]
    channels = pixels[0].size // (height * width)
    rows, columns = (np.unique(np.arange(side) * length // side) for length in (height, width))
    sums = np.empty((len(first), len(rows) * len(columns)), dtype=np.int32)
    step = max(1, CHUNK_BYTES // (pixels[0].size * 8))
    for start in range(0, len(first), step):
        part = pixels[first[start : start + step]].reshape(-1, height, width, channels)
        bands = np.add.reduceat(part, rows, axis=1, dtype=np.int32)
        blocks = np.add.reduceat(bands, columns, axis=2).sum(axis=3)
        sums[start : start + step] = blocks.reshape(len(part), -1)
    return sums


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the sums of absolute differences of images, [k]."""
    larger, smaller = np.maximum(one, other), np.minimum(one, other)
    return (larger - smaller).sum(axis=tuple(range(1, one.ndim)), dtype=np.int64)
