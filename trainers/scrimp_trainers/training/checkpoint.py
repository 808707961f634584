"""Checkpoints: a folder of safetensors and JSON that is there whole or not at all, with a checksum of every file."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import match_folder_mode
from scrimp_trainers.training.state import State

FORMAT = 1
SUMS = "SHA256SUMS"
"""Checksums of the other files, as `sha256sum --check` reads them."""


class Damaged(Exception):
    """A checkpoint of which a file is missing, cut short or changed."""


def save(
    folder: Path, state: State, identity: dict[str, Any], extra: dict[str, Any], previous: Path | None = None
) -> None:
    """Replace the checkpoint in this folder.

    The new one is written beside the old, synced and renamed: a kill at any moment leaves one of the two.

    Parameters
    ----------
    previous
        Where the checkpoint that is replaced is kept, in the place of the one before it; none removes it.
    identity
        What must be the same for whoever goes on from here, as JSON can hold it.
    extra
        Whatever else the caller wants back, as JSON can hold it.
    """
    new, old = _beside(folder, "new"), previous or _beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write(new, state, identity, extra)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # on a full disk others need the room
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    _sync(folder.parent)
    if not previous:
        shutil.rmtree(old, ignore_errors=True)


def restore(folders: Sequence[Path], state: State, identity: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Fill a new state from the first of these folders that holds a sound checkpoint.

    A kill between the two renames of `save` leaves the checkpoint beside its folder, and it is found there.

    Returns
    -------
    tuple
        The `extra` that was saved with it, none if there is no sound one; and one line that says which checkpoints
        are damaged and where training resumes, empty if none is.

    Raises
    ------
    UserError
        If the checkpoint's identity is another one, or this version of Scrimp does not know its form.
    """
    damage: list[str] = []
    for path in [path for folder in folders for path in (folder, _beside(folder, "old")) if path.exists()]:
        try:
            extra = load(path, state, identity)
        except Damaged as error:
            damage.append(str(error))
            continue
        resumes = f"training resumes from {path} at {state.images / 1000:g} kimg"
        return extra, "; ".join([*damage, resumes]) if damage else ""
    return None, "; ".join([*damage, "training starts again"]) if damage else ""


def load(found: Path, state: State, identity: dict[str, Any]) -> dict[str, Any]:
    """Fill a new state with what was saved, and return the `extra` that was saved with it.

    Raises
    ------
    Damaged
        If a file is not what was written. The state is as it was then.
    UserError
        If the checkpoint's identity is another one, this version of Scrimp does not know its form, or its tensors are
        not those of this training.
    """
    _verify(found)
    facts = json.loads((found / "state.json").read_text())
    if facts["format"] != FORMAT:
        raise UserError(f"{found}: checkpoint format {facts['format']} is not {FORMAT}; use the version that wrote it")
    _refuse_another(found, _flat(facts["identity"]), _flat(identity))
    device = str(next(state.network.parameters()).device)
    for name, network in (("network", state.network), ("ema", state.ema)):
        file = found / f"{name}.safetensors"
        weights.load_weights(network, weights.read_weights(file, device), file)
    _load_optimizer(found / "optimizer.safetensors", state, device)
    if state.masks:
        file = found / "masks.safetensors"
        masks = weights.read_weights(file, device)
        weights.require_same(masks, state.masks.tensors(), file)
        state.masks.load(masks)
    state.step, state.images = facts["step"], facts["images"]
    return facts["extra"]


def _load_optimizer(file: Path, state: State, device: str) -> None:
    tensors, parameters = weights.read_weights(file, device), dict(state.network.named_parameters())
    kinds = {name.partition("/")[0] for name in tensors}
    scalar = torch.zeros(())
    expected = {
        f"{kind}/{name}": scalar if kind == "step" else parameter
        for kind in kinds
        for name, parameter in parameters.items()
    }
    weights.require_same(tensors, expected, file)
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition("/")
        # A copy: what is loaded is mapped from its file, which the next checkpoint removes.
        state.optimizer.state[parameters[parameter]][kind] = tensor.clone()


def _write(new: Path, state: State, identity: dict[str, Any], extra: dict[str, Any]) -> None:
    new.mkdir(parents=True)
    save_file(_plain(state.network.state_dict()), new / "network.safetensors")
    save_file(_plain(state.ema.state_dict()), new / "ema.safetensors")
    save_file(_plain(_optimizer_tensors(state)), new / "optimizer.safetensors")
    if state.masks:
        save_file(_plain(state.masks.tensors()), new / "masks.safetensors")
    facts = {"format": FORMAT, "step": state.step, "images": state.images, "identity": identity, "extra": extra}
    (new / "state.json").write_text(json.dumps(facts, indent=2) + "\n")
    (new / SUMS).write_text(_sums(new))
    for path in new.glob("*.safetensors"):
        match_folder_mode(path)
    for path in [*new.iterdir(), new]:
        _sync(path)


def _sums(folder: Path) -> str:
    lines = []
    for path in sorted(folder.iterdir()):
        if path.name != SUMS:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return "".join(lines)


def _verify(found: Path) -> None:
    """Compare the files with their checksums; one too many counts like one that is missing."""
    if not (found / SUMS).is_file():
        raise Damaged(f"{found}: damaged, {SUMS} is missing")
    stated, there = (found / SUMS).read_text(errors="replace"), _sums(found)
    if stated != there:
        wrong = {line.rpartition("  ")[2] for line in {*stated.splitlines()} ^ {*there.splitlines()}}
        raise Damaged(f"{found}: damaged, see {', '.join(sorted(wrong))}")


def _refuse_another(found: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if names:
        changes = "; ".join(f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here" for name in names)
        raise UserError(f"{found}: the checkpoint of another run ({changes}); name another folder")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _optimizer_tensors(state: State) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": torch.as_tensor(value)
        for name, parameter in state.network.named_parameters()
        for kind, value in state.optimizer.state[parameter].items()
    }


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
