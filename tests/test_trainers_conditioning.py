"""A conditioner: the conditions of a batch, of samples, and where they are hidden."""

from typing import ClassVar

import torch
from trainers_small import CPU, random_batches

from scrimp_trainers.conditioning.classes import Classes, conditioner_for
from scrimp_trainers.conditioning.conditioner import hide


def test_a_network_without_classes_has_no_conditioner():
    assert conditioner_for(0) is None
    assert conditioner_for(3) == Classes(3)


def test_samples_take_the_classes_in_turn_whatever_part_of_them_is_drawn():
    labels = Classes(3).for_samples(range(1, 9, 2), CPU)
    assert labels.tolist() == [1, 0, 2, 1]
    assert labels.dtype == torch.int64


def test_a_batch_is_told_its_labels_and_those_that_are_hidden_get_the_class_after_the_last():
    batch = next(random_batches(8))
    classes = Classes(10)
    known = classes.of(batch)
    assert known is not None
    assert known is batch.labels
    hidden = torch.arange(8) % 2 == 0
    conditions = hide(classes, known, hidden)
    assert torch.equal(conditions, known.masked_fill(hidden, 10))
    assert torch.equal(classes.null(8, CPU), torch.full((8,), 10))


class Captions:
    """A conditioner whose rows are vectors, as a text's embedding would be."""

    name: ClassVar[str] = "text"

    def of(self, batch):
        return torch.ones(len(batch.labels), 5, 4)

    def null(self, count, device):
        return torch.zeros(count, 5, 4, device=device)

    def for_samples(self, numbers, device):
        return torch.ones(len(numbers), 5, 4, device=device)


def test_hiding_works_on_rows_of_any_shape():
    batch = next(random_batches(8))
    captions = Captions()
    hidden = torch.arange(8) < 3
    conditions = hide(captions, captions.of(batch), hidden)
    assert conditions.flatten(1).mean(1).tolist() == [0] * 3 + [1] * 5
