"""Read the files of a source: a folder, a zip, a tar(.gz or .xz) or a single file.

Nothing is ever extracted to a path that an archive chooses, and a member's size is checked before it is read.
"""

import gzip
import io
import lzma
import os
import stat
import tarfile
import tempfile
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from scrimp_trainers.common.errors import UserError

Member = TypeVar("Member")

DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)
"""What reading raises if an archive is damaged or compressed by a method that Python does not support."""
DAMAGED_ARRAY = (*DAMAGED, ValueError, TypeError, OverflowError, tokenize.TokenError)
"""What NumPy raises of a damaged file of an array: its header is Python."""

PACKED: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open}
"""What opens a packed tar, by the bytes with which it begins."""
MAX_BYTES = 2**28
"""Largest image file, label file or batch of images."""
MAX_DEPTH = 100
"""Deepest nesting of folders."""
FREE_BYTES = 2**30
MAX_RATIO = 100
"""What unpacks to more than `FREE_BYTES` may be at most `MAX_RATIO` times its packed size: no images pack better."""


@dataclass(frozen=True)
class Tree:
    """Named files to read from. All methods are safe to call from several threads at once."""

    path: Path
    """The folder, archive or file."""
    names: list[str]
    """Relative names of the files, with forward slashes, sorted, without hidden files."""
    open: Callable[[str], BinaryIO]
    """Open one of the files."""
    scratch: Path
    """A folder for temporary files. Its owner removes it after all reading."""
    is_archive: bool = False
    """Whether the files are members of an archive, and so have no path of their own."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many entries were skipped, by reason."""

    def where(self, name: str) -> str:
        """Name a file for an error message."""
        return f"{self.path}: {name}" if self.is_archive else str(self.file(name))

    def file(self, name: str) -> Path:
        """Return the path of a file that is not inside an archive."""
        return self.path / name if self.path.is_dir() else self.path

    def head(self, name: str, size: int) -> bytes:
        """Read the first `size` bytes of a file; nothing if it cannot be read."""
        try:
            with self.open(name) as file:
                return file.read(size)
        except DAMAGED:
            return b""

    def read(self, name: str) -> bytes:
        """Read a whole small file.

        Raises
        ------
        UserError
            If it cannot be read, or is too large.
        """
        try:
            with self.open(name) as file:
                data = file.read(MAX_BYTES + 1)
        except DAMAGED as error:
            raise UserError(f"{self.where(name)}: cannot be read ({error})") from None
        if len(data) > MAX_BYTES:
            raise UserError(f"{self.where(name)}: unpacks to more than {MAX_BYTES >> 20} MiB, a decompression bomb?")
        return data


def refuse_bomb(size: int, packed: int, where: str) -> None:
    """Refuse data that would unpack to far more than images could.

    Raises
    ------
    UserError
        If the unpacked `size` is out of proportion to the `packed` one, both in bytes.
    """
    if size > FREE_BYTES and size > MAX_RATIO * packed:
        raise UserError(f"{where}: {packed:,} bytes unpack to {size:,} or more, a decompression bomb?")


def open_tree(path: Path, scratch: Path) -> Tree:
    """Open a folder, zip, tar, packed tar (gzip or xz) or single file.

    Parameters
    ----------
    scratch
        A folder for temporary files, such as an unpacked tar; its owner removes it.

    Raises
    ------
    UserError
        If there is nothing there, or an archive is damaged or contains entries that an archive of images never needs.
    """
    if path.is_dir():
        return _folder(path, scratch)
    if not path.is_file():
        raise UserError(f"{path}: no such folder or file")
    if path.suffix != ".npz" and zipfile.is_zipfile(path):
        return _zip(path, scratch)

    with path.open("rb") as file:
        head = file.read(6)
    if _is_tar(path):
        unpack = next((unpack for magic, unpack in PACKED.items() if head.startswith(magic)), None)
        plain_tar = _unpacked(path, scratch, unpack) if unpack else path
        return _tar(path, plain_tar, scratch)
    if path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")):
        raise UserError(f"{path}: not a {path.suffix[1:]} archive, or cut short")
    return Tree(path, [path.name], lambda _: path.open("rb"), scratch)


def _folder(path: Path, scratch: Path) -> Tree:
    skipped: Counter[str] = Counter()
    output = scratch.parent.stat()  # the dataset being made may lie inside its source
    names = sorted(_walk(path, path, {(output.st_dev, output.st_ino)}, skipped))
    return Tree(path, names, lambda name: (path / name).open("rb"), scratch, skipped=dict(skipped))


def _walk(folder: Path, root: Path, visiting: set[tuple[int, int]], skipped: Counter[str]) -> Iterator[str]:
    """Yield the files below a folder. Follow links, except into a folder that is being visited.

    Folders of images often consist of links. `visiting` holds device and inode of the folders above this one.
    """
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in visiting:
        return
    visiting = visiting | {identity}
    if len(visiting) > MAX_DEPTH:
        raise UserError(f"{root}: folders are nested more than {MAX_DEPTH} deep; name a deeper folder")

    entries = list(folder.iterdir())
    if not entries:
        skipped["empty folders"] += 1
    for entry in entries:
        if entry.name.startswith("."):
            skipped["hidden files and folders"] += 1
            continue
        _require_text(entry.name, str(folder))
        if entry.is_dir():
            yield from _walk(entry, root, visiting, skipped)
        elif entry.is_file() or not entry.exists():  # a dangling link is reported when it is read
            yield entry.relative_to(root).as_posix()
        else:  # reading a pipe would block
            skipped["not a regular file, such as a pipe"] += 1


def _require_text(name: str, where: str) -> None:
    """Refuse a name that is not UTF-8: a manifest could not contain it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise UserError(f"{where}: the name {shown} is not UTF-8 text; rename it") from None


def _zip(path: Path, scratch: Path) -> Tree:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: damaged ({error})") from None

    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if stat.S_ISLNK(mode):
            raise UserError(f"{path}: {info.filename}: is a link; pack the files themselves")
        if info.flag_bits & 1:
            raise UserError(f"{path}: {info.filename}: is encrypted; unpack it first")
        if not info.is_dir():
            _add_member(members, info.filename, info, path)

    def unpack(name: str) -> BinaryIO:
        refuse_bomb(members[name].file_size, members[name].compress_size, f"{path}: {name}")
        return archive.open(members[name])  # type: ignore[return-value]

    return _archive(path, list(members), unpack, scratch)


def _add_member(members: dict[str, Member], name: str, member: Member, path: Path) -> None:
    """Add a member under its normalised name, if that is safe and unique."""
    normalised = PurePosixPath(name.replace("\\", "/"))
    _require_text(name, str(path))
    if normalised.is_absolute() or ".." in normalised.parts or "\0" in name:
        raise UserError(f"{path}: {name!r}: is a path outside the archive")
    if str(normalised) in members:
        raise UserError(f"{path}: {name}: is in the archive twice")
    members[str(normalised)] = member


def _archive(path: Path, members: list[str], unpack: Callable[[str], BinaryIO], scratch: Path) -> Tree:
    """Make a tree of an archive's members, without hidden ones."""
    names = sorted(name for name in members if not _is_hidden(name))
    skipped: dict[str, int] = {}
    if len(names) < len(members):
        skipped["hidden files and folders"] = len(members) - len(names)
    return Tree(path, names, unpack, scratch, is_archive=True, skipped=skipped)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except DAMAGED:  # a gzip file that is cut short
        return False


def _unpacked(path: Path, scratch: Path, unpack: Callable[[Path], Any]) -> Path:
    """Unpack a packed tar to a plain one, whose members can be read in any order."""
    handle, name = tempfile.mkstemp(dir=scratch, suffix=".tar")
    packed = path.stat().st_size
    size = 0
    with os.fdopen(handle, "wb") as target, unpack(path) as source:
        try:
            while block := source.read(2**20):
                size += len(block)
                refuse_bomb(size, packed, str(path))
                target.write(block)
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: cut short or damaged ({error})") from None
    return Path(name)


def _tar(path: Path, plain: Path, scratch: Path) -> Tree:
    """Open the archive `path`, of which `plain` is the uncompressed tar."""
    members: dict[str, tarfile.TarInfo] = {}
    end = 0
    try:
        with tarfile.open(plain, "r:") as archive:
            for member in archive:
                end = member.offset_data
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(f"{path}: {member.name}: is a link or special file; pack the files themselves")
                end += member.size
                _add_member(members, member.name, member, path)
    except tarfile.TarError as error:
        raise UserError(f"{path}: cut short or damaged ({error})") from None
    if plain.stat().st_size <= end:  # a tar ends with empty blocks; without them it is cut between two members
        raise UserError(f"{path}: cut short")

    def unpack(name: str) -> BinaryIO:
        member = members[name]
        with plain.open("rb") as file:
            file.seek(member.offset_data)
            return io.BytesIO(file.read(member.size))

    return _archive(path, list(members), unpack, scratch)
