"""Checkpoints: atomic folders of safetensors and JSON, with a checksum of every file."""

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from scrimp_trainers.common import weights
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.file_sums import SUMS, files_below, sums_of
from scrimp_trainers.common.files import match_folder_mode, replace_folder, sync_to_disk
from scrimp_trainers.training.state import State

FORMAT = 1


class Damaged(Exception):
    """A file of a checkpoint is missing, cut short or changed."""


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds, as it was at one moment: later steps of the training leave it alone."""

    files: dict[str, dict[str, Tensor]]
    """The tensors of each file, by their names; contiguous, in main memory."""
    record: str
    """What `state.json` says."""


def copy_content(state: State, identity: dict[str, Any], extra: dict[str, Any]) -> Content:
    """Copy what a checkpoint holds to main memory.

    Parameters
    ----------
    identity
        What must be the same when training resumes from here; serialisable as JSON.
    extra
        What else the caller wants to restore; serialisable as JSON.
    """
    files = {
        "network": _copied(state.network.kept_state()),
        "ema": _copied(state.ema.kept_state()),
        "optimizer": _copied(_optimizer_tensors(state)),
    }
    if state.masks:
        files["masks"] = _copied(state.masks.tensors())
    if state.power:
        files["power"] = _copied(state.power.tensors())
    record = {"format": FORMAT, "step": state.step, "images": state.images, "identity": identity, "extra": extra}
    return Content(files, json.dumps(record, indent=2) + "\n")


def write(folder: Path, content: Content, previous: Path | None = None) -> None:
    """Replace the checkpoint in this folder.

    The new one is written beside the old one, synced and renamed: a kill at any moment leaves one of the two.

    Parameters
    ----------
    previous
        Where to keep the replaced checkpoint, instead of the one before it; None deletes it.
    """
    new = _beside(folder, "new")
    old = previous or _beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write_files(new, content)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # free the space on a full disk
        raise

    replace_folder(new, folder, old)
    if not previous:
        shutil.rmtree(old, ignore_errors=True)


def restore(
    folders: Sequence[Path], state: State, identity: dict[str, Any], defaults: Collection[str] = ()
) -> tuple[dict[str, Any] | None, str]:
    """Load the first intact checkpoint among these folders into a new state.

    A kill between the two renames of `write` leaves the checkpoint beside its folder; it is found there. `identity` and
    `defaults` are as in `load`.

    Returns
    -------
    tuple
        The `extra` that was saved with it, None if there is no intact one; and a message that says which checkpoints
        are damaged and where training resumes, empty if none is damaged.

    Raises
    ------
    UserError
        If the checkpoint has another identity, or a format that this version of Scrimp does not know.
    """
    candidates = [path for folder in folders for path in (folder, _beside(folder, "old"))]
    damage: list[str] = []
    for path in candidates:
        if not path.exists():
            continue
        try:
            extra = load(path, state, identity, defaults)
        except Damaged as error:
            damage.append(str(error))
            continue

        if damage:
            damage.append(f"training resumes from {path} at {state.images / 1000:g} kimg")
        return extra, "; ".join(damage)

    if damage:
        damage.append("training starts again")
    return None, "; ".join(damage)


def load(folder: Path, state: State, identity: dict[str, Any], defaults: Collection[str] = ()) -> dict[str, Any]:
    """Load a checkpoint into a new state, and return the `extra` that was saved with it.

    `defaults` are the dotted names of what has its default value in the identity. A checkpoint may lack these: it is
    older than they are, and by default a new field leaves training as it was.

    Raises
    ------
    Damaged
        If a file differs from what was written. The state is then unchanged.
    UserError
        If the checkpoint has another identity, a format that this version of Scrimp does not know, or tensors that are
        not those of this training.
    """
    _verify(folder)
    record = json.loads((folder / "state.json").read_text())
    if record["format"] != FORMAT:
        raise UserError(
            f"{folder}: checkpoint format {record['format']} is not {FORMAT}; use the version that wrote it"
        )
    _require_same_identity(folder, _flatten(record["identity"]), _flatten(identity), defaults)

    device = str(next(state.network.parameters()).device)
    for name, network in (("network", state.network), ("ema", state.ema)):
        file = folder / f"{name}.safetensors"
        network.load_kept(weights.read_weights(file, device), file)
    _load_optimizer(folder / "optimizer.safetensors", state, device)
    if state.masks:
        file = folder / "masks.safetensors"
        masks = weights.read_weights(file, device)
        weights.require_same(masks, state.masks.tensors(), file)
        state.masks.load(masks)
    if state.power:
        file = folder / "power.safetensors"
        averages = weights.read_weights(file, device)
        weights.require_same(averages, state.power.tensors(), file)
        state.power.load(averages)

    state.step = record["step"]
    state.images = record["images"]
    return record["extra"]


def _load_optimizer(file: Path, state: State, device: str) -> None:
    """Load the optimizer's state, whose tensors are named `<kind>/<parameter>`."""
    tensors = weights.read_weights(file, device)
    parameters = {name: weight for name, weight in state.network.named_parameters() if weight.requires_grad}

    kinds = {name.partition("/")[0] for name in tensors}
    scalar = torch.zeros(())
    expected: dict[str, Tensor] = {}
    for kind in kinds:
        for name, parameter in parameters.items():
            expected[f"{kind}/{name}"] = scalar if kind == "step" else parameter
    weights.require_same(tensors, expected, file)

    for name, tensor in tensors.items():
        kind, _, parameter_name = name.partition("/")
        parameter = parameters[parameter_name]
        # Copied, because loaded tensors are mapped from the file, which the next checkpoint removes. A fused step wants
        # moments to lie in memory as their weights do.
        kept = torch.empty_like(scalar if kind == "step" else parameter, dtype=tensor.dtype, device=tensor.device)
        state.optimizer.state[parameter][kind] = kept.detach().copy_(tensor)


def _write_files(new: Path, content: Content) -> None:
    new.mkdir(parents=True)
    for name, tensors in content.files.items():
        save_file(tensors, new / f"{name}.safetensors")
    (new / "state.json").write_text(content.record)
    (new / SUMS).write_text(sums_of(new, files_below(new)))

    for path in new.glob("*.safetensors"):
        match_folder_mode(path)
    for path in [*new.iterdir(), new]:
        sync_to_disk(path)


def _verify(folder: Path) -> None:
    """Compare the files with their checksums. An extra file is an error like a missing one."""
    if not (folder / SUMS).is_file():
        raise Damaged(f"{folder}: damaged, {SUMS} is missing")

    stated = (folder / SUMS).read_text(errors="replace")
    actual = sums_of(folder, files_below(folder))
    if stated != actual:
        differing_lines = set(stated.splitlines()) ^ set(actual.splitlines())
        files = {line.rpartition("  ")[2] for line in differing_lines}
        raise Damaged(f"{folder}: damaged, see {', '.join(sorted(files))}")


def _require_same_identity(
    folder: Path, saved: dict[str, Any], current: dict[str, Any], defaults: Collection[str]
) -> None:
    differing = [name for name in {**current, **saved} if saved.get(name) != current.get(name)]
    names = [name for name in differing if name in saved or name not in defaults]
    if names:
        changes = "; ".join(f"{name} is {saved.get(name)!r} there and {current.get(name)!r} here" for name in names)
        raise UserError(f"{folder}: the checkpoint of another run ({changes}); name another folder")


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _optimizer_tensors(state: State) -> dict[str, Tensor]:
    return {
        f"{kind}/{name}": torch.as_tensor(value)
        for name, parameter in state.network.named_parameters()
        if parameter.requires_grad
        for kind, value in state.optimizer.state[parameter].items()
    }


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    layout = torch.contiguous_format  # what safetensors can write
    return {name: tensor.detach().to("cpu", copy=True, memory_format=layout) for name, tensor in tensors.items()}


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")
