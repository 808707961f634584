"""Load weights strictly: every tensor of a network comes from the file, or the file is rejected."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from scrimp_trainers.common.errors import UserError

MAX_MESSAGE_LENGTH = 200
"""Characters of a library's error message that a message of ours quotes."""


def read_weights(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    try:
        return load_file(file, device)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}") from None


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Load a file's tensors into a network.

    Raises
    ------
    UserError
        If a tensor is missing, has another shape or does not belong to the network; the message names file and tensor.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{file}: not the weights of this network: {one_line(error)}") from None


def require_same(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    """Require tensors with exactly the expected names and shapes.

    Raises
    ------
    UserError
        If a tensor is missing, unexpected or of another shape; the message names file and tensor.
    """
    for name in sorted({*tensors, *expected}):
        if name not in tensors:
            raise UserError(f"{file}: lacks {name}")
        if name not in expected:
            raise UserError(f"{file}: has an unknown {name}")

        shape = tuple(tensors[name].shape)
        expected_shape = tuple(expected[name].shape)
        if shape != expected_shape:
            raise UserError(f"{file}: {name} has the shape {shape}, which should be {expected_shape}")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of tensors on the CPU, with their names, shapes and types, for the metadata of their file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Return an error's message, which may span many lines, as one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("Error(s) in loading state_dict for "):
        text = text.partition(": ")[2]  # keep the part that names the tensors
    if len(text) > MAX_MESSAGE_LENGTH:
        return f"{text[:MAX_MESSAGE_LENGTH]} ..."
    return text
