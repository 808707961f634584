"""LSUN's databases: a folder such as `bedroom_train_lmdb/` with `data.mdb`, whose values are image files.

The order of the images is that of the keys, which are hashes: the first ones are as good as any.
"""

import io
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.pixels import decode_image
from scrimp_trainers.data.sources.source import Source
from scrimp_trainers.data.tree import Tree

if TYPE_CHECKING:  # an optional dependency
    import lmdb

FILE = "data.mdb"


def recognises(tree: Tree) -> bool:
    """Whether there is a database."""
    return any(PurePosixPath(name).name == FILE for name in tree.names)


def read(tree: Tree) -> Source:
    """List the keys of the database; images are read one by one.

    Raises
    ------
    UserError
        If it is in an archive, one of several, damaged or cut short, or the package lmdb is missing.
    """
    names = [name for name in tree.names if PurePosixPath(name).name == FILE]
    if tree.is_archive:
        raise UserError(f"{tree.path}: a database cannot be read inside an archive; unpack it first")
    if len(names) > 1:
        folder = tree.file(names[0]).parent
        raise UserError(f"{tree.path}: {len(names)} databases; name the folder of one, such as {folder}")

    folder = str(tree.file(names[0]).parent)
    environment, keys = _open(folder)

    def load(i: int) -> object:
        with environment.begin() as transaction:
            data = transaction.get(keys[i])
        return decode_image(io.BytesIO(data or b""), where(i))

    def where(i: int) -> str:
        return f"{folder}: {keys[i].decode(errors='backslashreplace')}"

    return Source("lsun", count=len(keys), load=load, where=where)


def _open(folder: str) -> tuple["lmdb.Environment", list[bytes]]:
    """Open a database for reading alone, and list its keys."""
    try:
        import lmdb
    except ModuleNotFoundError:
        raise UserError(f"{folder}: LSUN's databases need the package lmdb: pip install 'scrimp[lsun]'") from None

    try:
        environment = lmdb.open(folder, readonly=True, lock=False, readahead=False)
        _require_whole(environment, folder)
        with environment.begin() as transaction:
            return environment, list(transaction.cursor().iternext(values=False))
    except lmdb.Error as error:
        raise UserError(f"{folder}: not a database of LSUN, or damaged ({error})") from None


def _require_whole(environment: "lmdb.Environment", folder: str) -> None:
    """Refuse a file that is cut short: reading behind its end would kill the process."""
    pages = environment.info()["last_pgno"] + 1
    needed = pages * environment.stat()["psize"]
    if (Path(folder) / FILE).stat().st_size < needed:
        raise UserError(f"{folder}: {FILE} is cut short")
