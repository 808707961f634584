"""`SHA256SUMS`: checksums of the files of a folder, beside them, as `sha256sum --check` reads them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.common.files import read_regular

SUMS = "SHA256SUMS"


def sums_of(folder: Path, names: Iterable[str]) -> str:
    """Return the checksums of files of a folder, a line each, in the order of their names."""
    lines: list[str] = []
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {name}\n")
    return "".join(lines)


def files_below(folder: Path) -> list[str]:
    """Return the names of all files of a folder and of those below it, except that of the checksums."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in files if path.name != SUMS]


def fault_of(folder: Path) -> str:
    """Return which file of a folder differs from its checksum, in words; empty if none does, or there are no checksums.

    Files without a checksum may be added and changed.
    """
    file = folder / SUMS
    try:
        stated = read_regular(file).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{file}: cannot be read ({error.strerror})"

    names = files_below(folder)
    for line in stated.removesuffix("\n").split("\n"):
        name = line.partition("  ")[2]
        if name not in names:
            return f"{folder}: {name!r:.200} is missing, which {SUMS} there names, or that is damaged"
        try:
            actual = sums_of(folder, [name])
        except OSError as error:
            return f"{folder / name}: cannot be read ({error.strerror})"
        if f"{line}\n" != actual:
            return f"{folder / name}: damaged or changed, by {SUMS} in {folder}"
    return ""


def require_intact(folder: Path) -> None:
    """Require that the files of a folder are those that its checksums were made of.

    Raises
    ------
    UserError
        If one is not. Without `SHA256SUMS` nothing is checked.
    """
    fault = fault_of(folder)
    if fault:
        raise UserError(f"{fault}; restore it, or remove {SUMS} if it was changed on purpose")
