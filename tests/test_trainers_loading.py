import itertools

import torch

from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.loading import batches


def test_a_resumed_run_continues_the_sequence(digits_dataset: Dataset):
    whole = batches(digits_dataset, batch_size=64, seed=3, device="cpu", flip=True)
    resumed = batches(digits_dataset, batch_size=64, seed=3, device="cpu", flip=True, start=40)
    for expected, batch in zip(itertools.islice(whole, 40, 45), resumed, strict=False):
        assert torch.equal(batch.images, expected.images)
