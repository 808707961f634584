"""Find equal and nearly equal images of a source, which must not be on both sides of a split.

Two images are near if their mean absolute difference is at most `near`. Candidate pairs come from sums over blocks of
pixels. The absolute differences of two images' block sums add up to at most the sum of the absolute differences of
their pixels, so a search among block sums misses no near pair. Nor can any signed sum of all blocks differ by more:
images are sorted by one, and each is compared only with those that follow closely. Candidates are then compared pixel
by pixel.

The time grows with the square of the number of images.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COARSE = 4
"""Blocks per side whose sums are compared for all pairs."""
FINER = (8, 16)
"""Blocks per side for the pairs that remain, before their pixels are read: drawings differ little in large blocks."""
ROWS = 512
COLUMNS = 2**14
"""Images that are compared at once with that many others."""
PAIRS = 2**15
"""Candidate pairs that are examined at once."""
CHUNK_BYTES = 2**26
"""Bytes of pixels compared at once."""


@dataclass(frozen=True)
class Duplicates:
    """Which of n images duplicate others."""

    group: np.ndarray
    """int64 [n]: images with the same number are connected by pairs that are equal or near."""
    beside_test: np.ndarray
    """bool [n]: images that equal or nearly equal one of the source's own test images and are not test images."""
    equal: int
    """Images that equal an earlier one."""
    near: int
    """Number of distinct images minus number of groups: of a pair of near images, one is counted."""

    @property
    def largest(self) -> int:
        """Number of images in the largest group."""
        return int(np.bincount(self.group).max())


def find_duplicates(pixels: np.ndarray, near: float, test: np.ndarray | None = None) -> Duplicates:
    """Find the duplicates among images.

    Parameters
    ----------
    pixels
        uint8 [n, ...], in memory or in a file.
    near
        Largest mean absolute difference of near pairs, of 255; 0 finds only equal images.
    test
        bool [n]: the source's own test images.
    """
    test = np.zeros(len(pixels), dtype=bool) if test is None else test
    first, inverse = _distinct(pixels)

    # One of several equal images represents all; it counts as a test or other image if any of them is one.
    has_test = np.bincount(inverse, weights=test) > 0
    has_other = np.bincount(inverse, weights=~test) > 0
    beside = has_test & has_other
    group = np.arange(len(first))
    if near > 0 and len(first) > 1:
        group = _link_near(pixels, first, near, has_test, has_other, beside)

    return Duplicates(
        group=group[inverse],
        beside_test=beside[inverse] & ~test,
        equal=len(pixels) - len(first),
        near=len(first) - len(np.unique(group)),
    )


def _distinct(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of the first of each set of equal images, and for each image the index of its set."""
    set_of_digest: dict[bytes, int] = {}
    inverse = np.empty(len(pixels), dtype=np.int64)
    first: list[int] = []
    for position, image in enumerate(pixels):
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        if digest not in set_of_digest:
            set_of_digest[digest] = len(first)
            first.append(position)
        inverse[position] = set_of_digest[digest]
    return np.array(first, dtype=np.int64), inverse


def _link_near(
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

    max_difference = int(near * pixels[0].size)
    at_once = max(1, CHUNK_BYTES // pixels[0].size)
    group = np.arange(len(first))
    finer = [_block_sums(pixels, first, side) for side in FINER]

    def matters(pairs: np.ndarray) -> np.ndarray:
        """Which pairs would, if near, link two groups or mark another image."""
        unmarked = has_other & ~beside
        across = (has_test[pairs] & unmarked[pairs[:, ::-1]]).any(axis=1)
        return across | (group[pairs[:, 0]] != group[pairs[:, 1]])

    def link(pairs: np.ndarray) -> None:
        """Compare pixels, and join the groups of the pairs that are near."""
        nonlocal group
        left, right = pairs[:, 0], pairs[:, 1]
        near_pairs = pairs[_distances(pixels[first[left]], pixels[first[right]]) <= max_difference]
        if not len(near_pairs):
            return
        beside[near_pairs[:, ::-1][has_test[near_pairs]]] = True
        edges = (np.ones(len(near_pairs), dtype=bool), group[near_pairs].T)
        graph = sparse.coo_array(edges, shape=(len(first), len(first)))
        _, component = connected_components(graph, directed=False)
        group = component[group]

    for candidates in _candidate_pairs(_block_sums(pixels, first, COARSE), max_difference):
        pairs = candidates[matters(candidates)]
        for sums in finer:
            left, right = pairs[:, 0], pairs[:, 1]
            pairs = pairs[np.abs(sums[left] - sums[right]).sum(axis=1) <= max_difference]

        # If many images are near each other, most pairs no longer matter once the first ones are compared.
        pairs = pairs[matters(pairs)]
        while len(pairs):
            link(pairs[:at_once])
            pairs = pairs[at_once:]
            pairs = pairs[matters(pairs)]
    return group


def _candidate_pairs(coarse: np.ndarray, max_difference: int) -> Iterator[np.ndarray]:
    """Yield pairs of images, int64 [k, 2]: all whose block sums [n, d] differ by at most this in L1."""
    from scipy.spatial.distance import cdist

    key = _widest_sum(coarse)
    order = np.argsort(key, kind="stable")
    key = key[order]
    sums = coarse[order].astype(np.float64)
    for start in range(0, len(sums), ROWS):
        rows = sums[start : start + ROWS]
        end = np.searchsorted(key, key[start + len(rows) - 1] + max_difference, side="right")
        for other in range(start, end, COLUMNS):
            columns = sums[other : min(end, other + COLUMNS)]
            row, column = np.nonzero(cdist(rows, columns, "cityblock") <= max_difference)
            pairs = np.stack([row + start, column + other], axis=1)
            pairs = order[pairs[pairs[:, 0] < pairs[:, 1]]]
            for part in range(0, len(pairs), PAIRS):
                yield pairs[part : part + PAIRS]


def _widest_sum(coarse: np.ndarray) -> np.ndarray:
    """Return the signed sum of the blocks, of those that a Hadamard matrix makes, that varies most over the images."""
    from scipy.linalg import hadamard

    size = 1 << (coarse.shape[1] - 1).bit_length()
    signed = coarse.astype(np.int64) @ hadamard(size)[: coarse.shape[1]]
    return signed[:, signed.std(axis=0).argmax()]


def _block_sums(pixels: np.ndarray, first: np.ndarray, side: int) -> np.ndarray:
    """Return the sums over at most `side` x `side` blocks of each distinct image, int32 [n, blocks]."""
    height, width = pixels.shape[1:3]
    channels = pixels[0].size // (height * width)
    rows = np.unique(np.arange(side) * height // side)  # where the blocks begin
    columns = np.unique(np.arange(side) * width // side)
    sums = np.empty((len(first), len(rows) * len(columns)), dtype=np.int32)
    step = max(1, CHUNK_BYTES // (pixels[0].size * 8))
    for start in range(0, len(first), step):
        images = pixels[first[start : start + step]].reshape(-1, height, width, channels)
        row_sums = np.add.reduceat(images, rows, axis=1, dtype=np.int32)
        block_sums = np.add.reduceat(row_sums, columns, axis=2).sum(axis=3)
        sums[start : start + step] = block_sums.reshape(len(images), -1)
    return sums


def _distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the sum of absolute differences [k] of each pair of uint8 images."""
    difference = np.maximum(images, others) - np.minimum(images, others)  # uint8 cannot hold negative differences
    return difference.sum(axis=tuple(range(1, images.ndim)), dtype=np.int64)
