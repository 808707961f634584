"""Which images of a source are trained on and which are held out: seeded, and nested for growing limits."""

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.duplicates import Duplicates

HELD_SHARE = 0.1
MOST_HELD = 10_000


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

    The held-out ones do not depend on the limits, and a smaller subset is part of a larger one of the same seed.

    Images that repeat each other stay together: of a group of duplicates all are held out, or none. So a class may give
    somewhat more or fewer than its share. At least one group is held out if any image is to be, unless all images are
    one group. Training images that repeat one of the source's own test images are left out.

    Parameters
    ----------
    count, labels
        How many images there are, and their classes, int64 [count].
    test
        bool [count]: the source's own test images. Only these are held out then, by default all of them.
    holdout
        How many to hold out, or which share if below 1; drawn from each class alike. Default: a tenth,
        10,000 at most.
    limit, per_class
        How many training images to keep, altogether or of each class.
    classes
        Names of the classes, for messages.
    duplicates
        Which images repeat others; none if all differ.

    Returns
    -------
    tuple
        Indices of the training and of the held-out images.

    Raises
    ------
    UserError
        If there are fewer images than asked for.
    """
    order = np.random.default_rng(seed).permutation(count)
    pool = order if test is None else order[test[order]]
    if holdout is None:
        number = min(MOST_HELD, int(HELD_SHARE * count)) if test is None else len(pool)
    else:
        number = int(holdout * len(pool)) if holdout < 1 else int(holdout)
    if number > len(pool):
        raise UserError(f"holdout: {number:,} images asked for, {len(pool):,} there")
    groups = np.arange(count) if duplicates is None or test is not None else duplicates.group
    members = labels[pool] if labels is not None else np.zeros(len(pool), dtype=np.int64)
    held = pool[_stratified(members, groups[pool], number)]
    if holdout and number and not len(held):
        raise UserError("holdout: all images repeat each other, so none can be held out; give --near 0 or --holdout 0")

    kept = np.ones(count, dtype=bool)
    kept[pool if test is not None else held] = False
    if duplicates is not None:
        kept &= ~duplicates.beside_test
    train = order[kept[order]]
    if per_class is not None:
        train = _of_each_class(train, labels, per_class, classes)
    if limit is not None and limit > len(train):
        raise UserError(f"limit: {limit:,} images asked for, {len(train):,} there besides the held-out ones")
    train = train[:limit]
    if len(train) == 0:
        raise UserError("no image is left to train on; hold out fewer")
    return train, held


def _stratified(labels: np.ndarray, groups: np.ndarray, number: int) -> np.ndarray:
    """Positions of about `number` entries, as many of each class as its share, by the largest remainder.

    Groups stay whole. First come those that fit into what is left of the shares, in order; then those that bring the
    counts nearer to the shares, although they exceed them.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * number / max(1, len(labels))
    left = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(left - exact, kind="stable")
    left[by_remainder[: number - left.sum()]] += 1

    members = _members(groups)
    needs = [np.bincount(inverse[group], minlength=len(classes)) for group in members]
    chosen: list[np.ndarray] = []
    waiting: list[int] = []
    for place, need in enumerate(needs):
        if (need <= left).all():
            chosen.append(members[place])
            left = left - need
        else:
            waiting.append(place)
    for place in waiting:
        nearer = np.abs(left - needs[place]).sum() < np.abs(left).sum()
        if nearer and len(chosen) + 1 < len(members):
            chosen.append(members[place])
            left = left - needs[place]

    if number and not chosen and len(members) > 1:
        chosen = [min(members, key=len)]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))


def _members(groups: np.ndarray) -> list[np.ndarray]:
    """Return the positions of each group, ordered by their first."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    members = np.split(order, starts[1:]) if len(order) else []
    return sorted(members, key=lambda positions: positions[0])


def _of_each_class(order: np.ndarray, labels: np.ndarray | None, number: int, classes: list[str] | None) -> np.ndarray:
    if labels is None:
        raise UserError("--per-class: the images have no classes")
    chosen = [order[labels[order] == label][:number] for label in range(int(labels.max()) + 1)]
    for label, images in enumerate(chosen):
        if len(images) < number:
            name = classes[label] if classes else label
            raise UserError(f"--per-class: {number} images asked for, class {name} has {len(images)} to train on")
    members = np.isin(order, np.concatenate(chosen))
    return order[members]
