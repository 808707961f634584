"""Choose training and held-out images of a source: seeded, and nested for growing limits."""

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.duplicates import Duplicates

DEFAULT_HOLDOUT = 0.1
"""Fraction of the images to hold out."""
MAX_DEFAULT_HOLDOUT = 10_000


def choose_subsets(
    count: int,
    labels: np.ndarray | None,
    test: np.ndarray | None,
    *,
    seed: int,
    classes: list[str] | None = None,
    duplicates: Duplicates | None = None,
    holdout: float | None = None,
    limit: int | None = None,
    per_class: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the training and the held-out images, both in a seeded order.

    The held-out images do not depend on the limits, and a smaller subset is contained in a larger one of the same seed.

    Duplicates stay together: of a group of duplicates either all are held out or none. So somewhat more or fewer images
    of a class than its share may be held out. If any image is to be held out, at least one group is, unless all images
    form one group. Training images that duplicate one of the source's own test images are left out.

    Parameters
    ----------
    count, labels
        The number of images, and their classes, int64 [count].
    test
        bool [count]: the source's own test images. If given, only these are held out, by default all of them.
    holdout
        The number of images to hold out, or a fraction if below 1; the same fraction of each class. Default: a tenth,
        at most 10,000.
    limit, per_class
        The number of training images to keep, in total or of each class.
    classes
        Names of the classes, for error messages.
    duplicates
        Which images duplicate others; None if none do.

    Returns
    -------
    tuple
        Indices of the training and of the held-out images.

    Raises
    ------
    UserError
        If there are fewer images than requested.
    """
    order = np.random.default_rng(seed).permutation(count)
    pool = order if test is None else order[test[order]]
    number = _holdout_number(holdout, len(pool), has_test=test is not None)
    if number > len(pool):
        raise UserError(f"holdout: {number:,} images requested, but there are {len(pool):,}")

    # Held-out images.
    groups = np.arange(count)
    if duplicates is not None and test is None:
        groups = duplicates.group
    pool_labels = labels[pool] if labels is not None else np.zeros(len(pool), dtype=np.int64)
    held = pool[_stratified(pool_labels, groups[pool], number)]
    if holdout and number and not len(held):
        raise UserError("holdout: all images repeat each other, so none can be held out; give --near 0 or --holdout 0")

    # Training images.
    trainable = np.ones(count, dtype=bool)
    trainable[pool if test is not None else held] = False
    if duplicates is not None:
        trainable &= ~duplicates.beside_test
    train = order[trainable[order]]

    if per_class is not None:
        train = _first_of_each_class(train, labels, per_class, classes)
    if limit is not None and limit > len(train):
        raise UserError(f"limit: {limit:,} images requested, but there are {len(train):,} besides the held-out ones")
    train = train[:limit]
    if len(train) == 0:
        raise UserError("no image is left to train on; hold out fewer")
    return train, held


def _holdout_number(holdout: float | None, pool: int, *, has_test: bool) -> int:
    """Return how many of the `pool` images to hold out."""
    if holdout is None:
        return pool if has_test else min(MAX_DEFAULT_HOLDOUT, int(DEFAULT_HOLDOUT * pool))
    if holdout < 1:
        return int(holdout * pool)
    return int(holdout)


def _stratified(labels: np.ndarray, groups: np.ndarray, number: int) -> np.ndarray:
    """Choose about `number` entries, of each class in proportion to its size, without splitting groups.

    Returns their sorted positions. Quotas of classes are rounded by the largest remainder. First come, in order, the
    groups that fit into the remaining quotas; then those that exceed them but bring the counts nearer to them.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * number / max(1, len(labels))
    remaining = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(remaining - exact, kind="stable")
    remaining[by_remainder[: number - remaining.sum()]] += 1

    members = _members_of_groups(groups)
    counts_of_groups = [np.bincount(inverse[group], minlength=len(classes)) for group in members]
    chosen: list[np.ndarray] = []
    deferred: list[int] = []
    for i, group_counts in enumerate(counts_of_groups):
        if (group_counts <= remaining).all():
            chosen.append(members[i])
            remaining = remaining - group_counts
        else:
            deferred.append(i)

    for i in deferred:
        after = remaining - counts_of_groups[i]
        is_nearer = np.abs(after).sum() < np.abs(remaining).sum()
        if is_nearer and len(chosen) + 1 < len(members):
            chosen.append(members[i])
            remaining = after

    if number and not chosen and len(members) > 1:
        chosen = [min(members, key=len)]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))


def _members_of_groups(groups: np.ndarray) -> list[np.ndarray]:
    """Return the positions of each group's members; groups are ordered by their first member."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = np.split(order, starts[1:]) if len(order) else []
    return sorted(members, key=lambda positions: positions[0])


def _first_of_each_class(
    order: np.ndarray, labels: np.ndarray | None, number: int, classes: list[str] | None
) -> np.ndarray:
    """Keep the first `number` images of each class, in order."""
    if labels is None:
        raise UserError("--per-class: the images have no classes")

    chosen: list[np.ndarray] = []
    for label in range(int(labels.max()) + 1):
        images = order[labels[order] == label][:number]
        if len(images) < number:
            name = classes[label] if classes else label
            raise UserError(f"--per-class: {number} images requested, but class {name} has {len(images)} to train on")
        chosen.append(images)
    is_chosen = np.isin(order, np.concatenate(chosen))
    return order[is_chosen]
