"""Which images of a source are trained on and which are held out: seeded, and nested for growing limits."""

import numpy as np

from scrimp_trainers.errors import UserError

HELD_SHARE = 0.1
MOST_HELD = 10_000


def choose(
    count: int,
    labels: np.ndarray | None,
    test: np.ndarray | None,
    *,
    seed: int,
    holdout: float | None = None,
    limit: int | None = None,
    per_class: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the training and the held-out images, both in a seeded order.

    The held-out ones do not depend on the limits, and a smaller subset is part of a larger one of the same seed.

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
    held = pool[_stratified(labels[pool] if labels is not None else np.zeros(len(pool), dtype=np.int64), number)]
    kept = np.ones(count, dtype=bool)
    kept[pool if test is not None else held] = False
    train = order[kept[order]]
    if per_class is not None:
        train = _of_each_class(train, labels, per_class)
    if limit is not None and limit > len(train):
        raise UserError(f"limit: {limit:,} images asked for, {len(train):,} there besides the held-out ones")
    train = train[:limit]
    if len(train) == 0:
        raise UserError("no image is left to train on; hold out fewer")
    return train, held


def _stratified(labels: np.ndarray, number: int) -> np.ndarray:
    """Positions of `number` entries, as many of each class as its share, by the largest remainder."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * number / max(1, len(labels))
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(quota - exact, kind="stable")
    quota[by_remainder[: number - quota.sum()]] += 1
    chosen = [np.flatnonzero(inverse == place)[: quota[place]] for place in range(len(classes))]
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))


def _of_each_class(order: np.ndarray, labels: np.ndarray | None, number: int) -> np.ndarray:
    if labels is None:
        raise UserError("--per-class: the images have no classes")
    chosen = [order[labels[order] == label][:number] for label in range(int(labels.max()) + 1)]
    for label, images in enumerate(chosen):
        if len(images) < number:
            raise UserError(f"--per-class: {number} images asked for, class {label} has {len(images)}")
    members = np.isin(order, np.concatenate(chosen))
    return order[members]
