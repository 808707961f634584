"""A file that is written block by block, checked when it is read, and continued where its writing was interrupted.

It is an .npy file of half precision, with the SHA-256 of what is in it behind its end. While it is written its name is
`.NAME.part`, and `.NAME.blocks` beside it holds the SHA-256 of each block. Whoever is killed leaves both; the next one
keeps the blocks that are what they should be, and writes the others.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from scrimp_trainers.common.files import atomic_file, publish

DTYPE = "<f2"
LINE = 2 * hashlib.sha256().digest_size + 1
"""Bytes of a line of the list of blocks."""


def write(
    path: Path,
    shape: tuple[int, ...],
    counts: Sequence[int],
    blocks_from: Callable[[int], Iterator[Tensor]],
    *,
    alone: bool,
) -> None:
    """Write a file, and go on from what an earlier process has left of it.

    Parameters
    ----------
    shape
        Of the whole array.
    counts
        How many of its rows each block has.
    blocks_from
        Yields the blocks, fp16 on the CPU, from this number on.
    alone
        Whether no other process writes the file meanwhile. If not, it is written from its beginning, under a name that
        no other process has.
    """
    if not alone:
        with atomic_file(path) as aside, aside.open("r+b") as file:
            _fill(file, io.BytesIO(), shape, counts, blocks_from)
        return

    part = path.with_name(f".{path.name}.part")
    listed = path.with_name(f".{path.name}.blocks")
    part.touch()
    listed.touch()
    with part.open("r+b") as file, listed.open("r+b") as digests:
        _fill(file, digests, shape, counts, blocks_from)
    publish(part, path)
    listed.unlink()


def is_sound(path: Path) -> bool:
    """Whether there is a file whose content is what was written."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):  # none, or an empty one
        return False
    end = len(data) - hashlib.sha256().digest_size
    return end > 0 and hashlib.sha256(data[:end].data).digest() == data[end:].tobytes()


def _fill(
    file: IO[bytes],
    digests: IO[bytes],
    shape: tuple[int, ...],
    counts: Sequence[int],
    blocks_from: Callable[[int], Iterator[Tensor]],
) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": DTYPE, "fortran_order": False, "shape": shape})
    file.write(header.getvalue())
    whole = hashlib.sha256(header.getvalue())

    # Keep what is there already.
    row_bytes = np.dtype(DTYPE).itemsize * int(np.prod(shape[1:]))
    kept = 0
    end = file.tell()
    for count, digest in zip(counts, digests.read().split(), strict=False):
        data = file.read(count * row_bytes)
        if hashlib.sha256(data).hexdigest().encode() != digest:
            break
        whole.update(data)
        kept += 1
        end = file.tell()
    file.seek(end)
    file.truncate()
    digests.seek(kept * LINE)
    digests.truncate()

    # Write the rest.
    for block in blocks_from(kept):
        data = block.numpy().tobytes()
        whole.update(data)
        file.write(data)
        file.flush()
        digests.write(hashlib.sha256(data).hexdigest().encode() + b"\n")
        digests.flush()
    file.write(whole.digest())
