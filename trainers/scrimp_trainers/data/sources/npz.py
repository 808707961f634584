"""NumPy archives: `images`, uint8 [N, H, W] or [N, H, W, C], and optionally `labels`, integers or strings [N]."""

import zipfile

import numpy as np

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.sources.source import Source, source_from_arrays
from scrimp_trainers.data.tree import DAMAGED_ARRAY, Tree, refuse_bomb


def recognises(tree: Tree) -> bool:
    """Whether there is exactly one such archive."""
    return sum(name.endswith(".npz") for name in tree.names) == 1


def read(tree: Tree) -> Source:
    """Read the arrays into memory.

    Raises
    ------
    UserError
        If an array is missing, damaged or of another form, or the numbers of labels and images differ.
    """
    name = next(name for name in tree.names if name.endswith(".npz"))
    where = tree.where(name)
    try:
        content = _read_arrays(tree, name)
    except DAMAGED_ARRAY as error:
        raise UserError(f"{where}: cannot be read ({error})") from None
    except MemoryError:
        raise UserError(f"{where}: does not fit into memory") from None

    images = content.get("images")
    if images is None:
        raise UserError(f"{where}: has no array `images`, only {', '.join(sorted(content)) or 'nothing'}")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise UserError(f"{where}: `images` is {images.dtype} {list(images.shape)}; uint8 [N, H, W, C] is needed")
    if 0 in images.shape:
        raise UserError(f"{where}: no images in it")

    labels = content.get("labels")
    if labels is None:
        return source_from_arrays("npz", [(where, images)])
    if labels.dtype.kind not in "iuU" or labels.shape != (len(images),):
        form = f"{labels.dtype} {list(labels.shape)}"
        raise UserError(f"{where}: `labels` is {form}; {len(images)} whole numbers or words are needed, one per image")
    values, class_numbers = np.unique(labels, return_inverse=True)
    classes = [str(value) for value in values]
    return source_from_arrays("npz", [(where, images)], class_numbers.astype(np.int64), classes)


def _read_arrays(tree: Tree, name: str) -> dict[str, np.ndarray]:
    """Read `images` and `labels`; other arrays are only named."""
    with tree.open(name) as file, zipfile.ZipFile(file) as archive:
        content = {}
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            refuse_bomb(info.file_size, info.compress_size, f"{tree.where(name)}: {key}")
            with archive.open(info) as member:
                if key in ("images", "labels"):
                    content[key] = np.lib.format.read_array(member, allow_pickle=False)
                else:
                    content[key] = np.empty(0)
        return content
