"""Weight files of extractors: where they are found, and how they are read.

A file is looked for where the setting says, then in torch's hub cache, and then it is downloaded. Files are read
without unpickling; what torch-fidelity would unpickle itself it gets from us, written anew from what was read safely.
"""

import hashlib
import io
import pickle
import re
import socket
import warnings
from pathlib import Path

import torch
import torch.hub
from torch import Tensor

from scrimp_trainers.common import parts
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.recipe.scoring import Extractor

TIMEOUT_SECONDS = 20


def weight_file(extractor: Extractor, setting: Path | None) -> Path:
    """Find an extractor's weight file: the setting, torch's hub cache, a download into that cache.

    Raises
    ------
    UserError
        If there is none, or the cached one is damaged.
    """
    if setting is not None:
        if not setting.is_file():
            raise UserError(f"weights {setting}: no such file; it must hold the weights of extractor {extractor}")
        return setting
    published = parts.module("metrics.extractors", extractor).source()
    name = published.file
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / name
    prefix = published_hash(name)
    if path.is_file():
        if not sha256(path).startswith(prefix):
            raise UserError(f"{path}: is damaged (its SHA-256 should begin with {prefix}); delete it")
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), hash_prefix=prefix or None, progress=False)
    except (OSError, RuntimeError) as error:  # no network, no such page, a full disk; a wrong hash
        raise UserError(
            f"extractor {extractor}: its weights could not be downloaded ({error}); "
            f"put {name} into {folder}, or name the file with `weights`"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def published_hash(name: str) -> str:
    """Return the beginning of a file's SHA-256 that its name states; empty if it states none."""
    found = re.search(r"-([0-9a-f]{8,})\.pth?$", name)
    return found[1] if found else ""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors.

    Raises
    ------
    UserError
        If it holds what could run code: torch's own errors advise to load it all the same.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a file is a TorchScript archive
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("damaged, or more than tensors, which could run code") from None
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        raise UserError("TorchScript, which can run code; save the tensors alone, as a state dict") from None


def rewritten(path: Path) -> io.BytesIO:
    """Return a file of tensors, written anew; raises as `tensors` does."""
    buffer = io.BytesIO()
    torch.save(tensors(path), buffer)
    buffer.seek(0)
    return buffer
