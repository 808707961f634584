"""Latents of a dataset's training images, encoded once and kept in the dataset's `cache/` folder.

What is kept is each image's posterior, as it is and mirrored, in half precision; a step draws from it what encoding
the image anew would have drawn. Of an autoencoder without a posterior it is the latents. The file's name holds what its
content depends on: the dataset and the encoder. Nothing else than mirroring changes an image before it is encoded:
patches are cut from latents.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scrimp_trainers.codecs import autoencoder_files
from scrimp_trainers.codecs.autoencoder import AutoencoderCodec, open_codec
from scrimp_trainers.common import cache_file
from scrimp_trainers.common.device import memory_left
from scrimp_trainers.common.errors import DiskFull, UserError
from scrimp_trainers.common.files import is_disk_full, locked
from scrimp_trainers.data.batch import Batch, to_device
from scrimp_trainers.data.dataset import Dataset
from scrimp_trainers.data.loading import draw_indices
from scrimp_trainers.data.manifest import Shard
from scrimp_trainers.data.shards import read_shard
from scrimp_trainers.recipe.techniques import Autoencoder

FORMAT = 2
"""Version of the cache. Raise it when latents are computed or kept in another way: they are made again."""
BLOCK = 64
"""Images that are encoded and written together."""


@dataclass(frozen=True)
class Latents:
    """The posteriors of a dataset's training images."""

    moments: Tensor
    """fp16 [N, 2, 2c, h, w]: mean, then log-variance, of each image as it is and mirrored, or [N, 2, c, h, w] without a
    posterior; on the device where it fits, or else mapped from the file."""


def open_latents(
    dataset: Dataset,
    settings: Autoencoder,
    device: torch.device,
    *,
    share: float = 0.25,
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """Read the latents of the training images; the first process that needs them makes them, others wait for it.

    They are written block by block, and one that is interrupted is continued by the next process that needs them, on
    whatever node.

    Parameters
    ----------
    share
        They are kept on a GPU if they take at most this share of the memory that is free there.
    progress
        Called with the images encoded so far and their total.

    Raises
    ------
    UserError
        If the encoder cannot be loaded or does not fit the images, or the cache cannot be written.
    """
    files = autoencoder_files.find(settings, "encoder")
    side, manifest = files.side(dataset.manifest.size), dataset.manifest
    name = f"{manifest.content_hash[:16]}-latents-{settings.kind}-{files.identity()[:16]}-v{FORMAT}.npy"
    path = dataset.folder / "cache" / name
    if not cache_file.is_sound(path):
        shape = (manifest.splits["train"].count, 2, files.moments, side, side)
        try:
            with locked(path) as alone:
                if not cache_file.is_sound(path):
                    _make(path, shape, dataset, settings, device, progress, alone=alone)
        except OSError as error:
            needed = max(1, 2 * int(np.prod(shape)) >> 20)
            kind = DiskFull if is_disk_full(error) else UserError
            raise kind(
                f"{path}: cannot be written ({error.strerror}); latents take about {needed:,} MiB there, and the next "
                "attempt goes on from those that are written"
            ) from None
    moments = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    if device.type == "cuda" and moments.nbytes <= share * memory_left(device)[0]:
        moments = moments.to(device)
    return Latents(moments)


def latent_batches(
    latents: Latents,
    labels: np.ndarray | None,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    flip: bool = False,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    kept: np.ndarray | None = None,
    sampling_weights: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Draw batches of posteriors without end, of the images that `loading.batches` would draw from memory.

    `labels` are those of all training images, int64 [N]; the rest is as there.

    Raises
    ------
    UserError
        If the batch cannot be split evenly over the ranks.
    """
    if batch_size % world:
        raise UserError(f"training.batch_size: {batch_size} cannot be split evenly over {world} devices")
    moments = latents.moments
    classes = None if labels is None else torch.from_numpy(labels).to(moments.device)
    drawn = draw_indices(
        len(moments), batch_size, seed, moments.device,
        flip=flip, rank=rank, world=world, start=start, kept=kept, sampling_weights=sampling_weights,
    )  # fmt: skip
    for index, flipped, _ in drawn:
        values = moments[index, flipped.long()]
        picked = None if classes is None else classes[index]
        if moments.device.type != device.type:
            values, index, flipped = (to_device(tensor.numpy(), device) for tensor in (values, index, flipped))
            picked = None if picked is None else to_device(picked.numpy(), device)
        yield Batch(values.float(), picked, index, flipped)


def _make(
    path: Path,
    shape: tuple[int, ...],
    dataset: Dataset,
    settings: Autoencoder,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
    *,
    alone: bool,
) -> None:
    """Encode the training images, those that are not yet in the file, and write them."""
    blocks = _blocks(dataset)

    def encoded_from(number: int) -> Iterator[Tensor]:
        done = sum(block.count for block in blocks[:number])
        codec = open_codec(settings, device, dataset.manifest.channels)
        for latents in _encoded(dataset, codec, blocks[number:]):
            yield latents
            done += len(latents)
            if progress:
                progress(done, shape[0])

    cache_file.write(path, shape, [block.count for block in blocks], encoded_from, alone=alone)


@dataclass(frozen=True)
class _Block:
    """Training images that are encoded and written together."""

    shard: Shard
    start: int
    """Number of its first image in the shard."""
    count: int


def _blocks(dataset: Dataset) -> list[_Block]:
    return [
        _Block(shard, start, min(BLOCK, shard.count - start))
        for shard in dataset.manifest.splits["train"].shards
        for start in range(0, shard.count, BLOCK)
    ]


def _encoded(dataset: Dataset, codec: AutoencoderCodec, blocks: Sequence[_Block]) -> Iterator[Tensor]:
    """Encode these images in their order; yield fp16 [b, 2, 2c or c, h, w]."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, blocks_of_shard in groupby(blocks, lambda block: block.shard):
            where = str(dataset.folder / shard.file)
            samples = enumerate(read_shard(dataset.folder, shard))
            for block in blocks_of_shard:
                wanted = islice((sample for i, sample in samples if i >= block.start), block.count)
                decoded = pool.map(lambda sample, where=where: dataset.modality.decode(sample.data, where), wanted)
                images = dataset.modality.collate(list(decoded)).values
                both = codec.moments(images), codec.moments(images.flip(3))
                yield torch.stack(both, 1).half().cpu()
