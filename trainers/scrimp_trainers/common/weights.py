"""Loading weights: every tensor of a network comes from the file, or the file is refused."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from scrimp_trainers.common.errors import UserError

LONGEST = 200
"""Characters of a library's message that one line of ours quotes."""


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
        If a tensor is missing, has another shape or does not belong to the network; the line names file and tensor.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{file}: not the weights of this network: {one_line(error)}") from None


def require_same(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    """Refuse tensors that are not the expected ones by name and shape.

    Raises
    ------
    UserError
        If one is missing, has another shape or is not expected; the line names file and tensor.
    """
    for name in sorted({*tensors, *expected}):
        if name not in tensors:
            raise UserError(f"{file}: lacks {name}")
        if name not in expected:
            raise UserError(f"{file}: has an unknown {name}")
        there, here = tuple(tensors[name].shape), tuple(expected[name].shape)
        if there != here:
            raise UserError(f"{file}: {name} has the shape {there}, which should be {here}")


def one_line(error: BaseException) -> str:
    """Return the message of an error, which may have many lines, as one of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    if text.startswith("Error(s) in loading state_dict for "):
        text = text.partition(": ")[2]  # the tensors' names come after it
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
