"""The parts of models in diffusers' layout: folders such as `text_encoder/` of a folder, or of a repository of the hub.

This file imports no torch, so that mistakes answer at once.
"""

from collections.abc import Sequence
from pathlib import Path

from scrimp_trainers.common.errors import UserError


def find_part(name: str, part: str, files: Sequence[str], where: str) -> Path:
    """Return the folder that holds these files: that of a part, or the whole where it is not divided into parts.

    Parameters
    ----------
    name
        Folder or hub id of the model; of the hub's the files are downloaded if need be.
    part
        Name of the part's folder in it.
    where
        How a message names it: the field of the recipe and its value.

    Raises
    ------
    UserError
        If there is no such folder or repository, or a file is missing.
    """
    folder = Path(name)
    if folder.is_dir():
        inside = folder / part
        folder = inside if inside.is_dir() else folder
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise UserError(f"{where}: has no {missing[0]}; name a folder that diffusers' save_pretrained has written")
        return folder
    if folder.is_absolute():
        raise UserError(f"{where}: no such folder; name one with its {' and '.join(files)}")
    return _hub_folder(name, part, files, where)


def _hub_folder(name: str, part: str, files: Sequence[str], where: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def folder_of(prefix: str, *, local: bool) -> Path:
        paths = [hf_hub_download(name, prefix + file, local_files_only=local) for file in files]
        return Path(paths[0]).parent

    try:
        for prefix in ("", f"{part}/"):
            try:
                return folder_of(prefix, local=True)
            except LocalEntryNotFoundError:
                continue
        try:
            return folder_of("", local=False)
        except LocalEntryNotFoundError:  # no network
            raise
        except EntryNotFoundError:
            return folder_of(f"{part}/", local=False)
    except (OSError, ValueError) as error:  # no network, no such repository, no name of one
        raise UserError(
            f"{where}: no such folder, and cannot be had from the hub ({str(error).splitlines()[0]}); "
            f"name a folder with its {' and '.join(files)}"
        ) from None
