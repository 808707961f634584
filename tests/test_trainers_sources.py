"""The same images and classes in every form that can be read, and what is wrong with files, in one line each."""

import gzip
import importlib
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_forms import (
    COUNT,
    LABELLED,
    LABELS,
    PIXELS,
    SIDE,
    UNLABELLED,
    batch,
    cifar,
    edm,
    files,
    idx,
    make_folder,
    make_npz,
    make_tar,
    make_zip,
    mnist,
    npy,
    png,
    samples,
)

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import tree
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.sources import formats
from scrimp_trainers.ingest import prepare


def prepared(source: Path | str, out: Path, **options: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """All images of a source in its own order, [N, H, W, C], and their classes."""
    prepare(str(source), out, Options(classifier=False, holdout=0, **options))
    images, labels, keys = open_dataset(out).images("train")
    order = np.argsort(keys)
    return images[order].transpose(0, 2, 3, 1), None if labels is None else labels[order]


@pytest.mark.parametrize("form", LABELLED)
def test_every_form_gives_the_same_images_and_classes(form: str, tmp_path: Path):
    images, labels = prepared(LABELLED[form](tmp_path / "source"), tmp_path / "out")
    grey = form.startswith(("idx", "pixel_table"))
    np.testing.assert_array_equal(images, PIXELS[..., :1] if grey else PIXELS)
    np.testing.assert_array_equal(labels, LABELS)
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest.provenance["format"] == form.partition(":")[0]
    assert manifest.classes is not None
    assert manifest.splits["train"].per_class == [4, 4, 4]


@pytest.mark.parametrize("form", UNLABELLED)
def test_every_form_may_do_without_classes(form: str, tmp_path: Path):
    images, labels = prepared(UNLABELLED[form](tmp_path / "source"), tmp_path / "out")
    np.testing.assert_array_equal(images, PIXELS[..., : images.shape[3]])
    assert labels is None
    assert open_dataset(tmp_path / "out").manifest.classes is None


def test_every_reader_there_is_has_its_form_above():
    drawings = {"drawings", "quickdraw", "svg"}  # tests/test_trainers_drawings.py
    forms = {form.partition(":")[0] for form in LABELLED | UNLABELLED}
    assert set(formats()) == forms | {"digits"} | drawings
    for name in formats():
        reader = importlib.import_module(f"scrimp_trainers.data.sources.{name}")
        assert callable(reader.recognises)
        assert callable(reader.read)


def test_digits_are_those_of_scikit_learn(tmp_path: Path):
    from sklearn.datasets import load_digits

    images, labels = prepared("digits", tmp_path / "out")
    expected = load_digits()
    np.testing.assert_allclose(images[..., 0] * (16 / 255), expected.images, atol=0.04)  # type: ignore[union-attr]
    np.testing.assert_array_equal(labels, expected.target)  # type: ignore[union-attr]


@pytest.mark.parametrize("source", ["cifar", "mnist"])
def test_the_sources_own_test_images_are_held_out(source: str, tmp_path: Path):
    make_folder(tmp_path / "source", cifar(test=True) if source == "cifar" else mnist(test=True))
    manifest = prepare(str(tmp_path / "source"), tmp_path / "out", Options(classifier=False))
    # These four equal training images, which are left out.
    assert (manifest.splits["train"].count, manifest.splits["holdout"].count) == (COUNT - 4, 4)
    assert manifest.splits["holdout"].per_class == [4, 0, 0]
    assert (manifest.summary.equal, manifest.summary.beside_test) == (4, 4)


def test_a_prepared_dataset_is_a_source_of_its_training_images(tmp_path: Path):
    make_folder(tmp_path / "source", files())
    first = prepare(str(tmp_path / "source"), tmp_path / "first", Options(classifier=False, holdout=3))
    assert first.splits["holdout"].count == 3
    second = prepare(str(tmp_path / "first"), tmp_path / "second", Options(classifier=False, holdout=0, size=8))
    assert second.splits["train"].per_class == first.splits["train"].per_class
    assert second.classes == ["class0", "class1", "class2"]


def altered(content: dict[str, bytes], **changes: bytes | None) -> dict[str, bytes]:
    """Replace or drop (None) the file whose name ends like the keyword."""
    for end, data in changes.items():
        name = next(name for name in content if name.split("/")[-1].split(".")[0] == end)
        content = {key: value for key, value in content.items() if key != name} | ({} if data is None else {name: data})
    return content


def linked(path: Path, kind: bytes) -> Path:
    with tarfile.open(path, "w") as archive:
        header = tarfile.TarInfo("01.png")
        header.type, header.linkname = kind, "/etc/passwd"
        archive.addfile(header)
    return path


def linked_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("01.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def spoilt(path: Path, mark: bytes) -> Path:
    """Change a byte a little after the first occurrence of a mark."""
    data = bytearray(path.read_bytes())
    data[data.index(mark) + (3 if mark.startswith(b"PK") else 20)] ^= 0xFF
    path.write_bytes(data)
    return path


def broken_link(path: Path) -> Path:
    (path / "99.png").symlink_to(path / "nowhere")
    return path


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises many pixels."""
    data = bytearray(png(PIXELS[0]))
    data[16:24] = struct.pack(">II", width, height)
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def headed(header: str) -> bytes:
    """An array of NumPy's whose header is this."""
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + bytes(96)


def transparent() -> bytes:
    return png(np.concatenate([PIXELS[0], np.full((SIDE, SIDE, 1), 9, np.uint8)], axis=2))


def deep() -> bytes:
    return png(np.full((SIDE, SIDE), 40_000, dtype=np.uint16))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch scrimp-was-here",)


F: dict[str, bytes] = files(labelled=False)
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda p: p, r"source: no such folder or file"),
    "an empty folder": (lambda p: make_folder(p / "x", {"notes.txt": b""}), "no images found"),
    "an empty zip": (lambda p: make_zip(p.with_suffix(".zip"), {}), "no images found"),
    "not an image": (lambda p: make_folder(p, altered(F, **{"03": b"hello"})), r"source/03\.png: not an image"),
    "an empty file": (lambda p: make_folder(p, altered(F, **{"03": b""})), r"source/03\.png: not an image"),
    "cut short": (lambda p: make_folder(p, altered(F, **{"03": F["03.png"][:900]})), r"source/03\.png: .*cut short"),
    "in a zip": (
        lambda p: make_zip(p.with_suffix(".zip"), altered(F, **{"03": b"x"})),
        r"source\.zip: 03\.png: not an",
    ),
    "in a tar": (
        lambda p: make_tar(p.with_suffix(".tar"), altered(F, **{"03": b"x"})),
        r"source\.tar: 03\.png: not an",
    ),
    "other size": (lambda p: make_folder(p, altered(F, **{"03": png(PIXELS[0][:16, :16])})), r"03\.png: .*--size"),
    "not square": (lambda p: make_folder(p, altered(F, **{"03": png(PIXELS[0][:16])})), r"03\.png: is 32x16.*--size"),
    "transparent": (lambda p: make_folder(p, altered(F, **{"03": transparent()})), r"03\.png: has transparent"),
    "16 bits": (lambda p: make_folder(p, altered(F, **{"03": deep()})), r"03\.png: has 16 bits.*--depth16 scale"),
    "pixel bomb": (lambda p: make_folder(p, altered(F, **{"03": claiming(40_000, 40_000)})), r"03\.png: .*bomb"),
    "small pixel bomb": (lambda p: make_folder(p, altered(F, **{"03": claiming(10_000, 10_000)})), r"03\.png: .*bomb"),
    "class and none": (
        lambda p: make_folder(p, {"a/1.png": F["01.png"], "2.png": F["02.png"]}),
        r"2\.png: is beside",
    ),
    "zip climbs": (
        lambda p: make_zip(p.with_suffix(".zip"), {"../up.png": F["01.png"]}),
        r"up\.png.*outside the archive",
    ),
    "zip is absolute": (
        lambda p: make_zip(p.with_suffix(".zip"), {"/up.png": F["01.png"]}),
        r"up\.png.*outside the archive",
    ),
    "zip climbs backwards": (
        lambda p: make_zip(p.with_suffix(".zip"), {"..\\up.png": b""}),
        r"up\.png.*outside the archive",
    ),
    "tar climbs": (
        lambda p: make_tar(p.with_suffix(".tar"), {"a/../../up.png": F["01.png"]}),
        r"up\.png.*outside the archive",
    ),
    "tar links": (lambda p: linked(p.with_suffix(".tar"), tarfile.SYMTYPE), r"01\.png: is a link"),
    "tar links hard": (lambda p: linked(p.with_suffix(".tar"), tarfile.LNKTYPE), r"01\.png: is a link"),
    "tar has a device": (lambda p: linked(p.with_suffix(".tar"), tarfile.FIFOTYPE), r"01\.png: is a link or special"),
    "zip links": (lambda p: linked_zip(p.with_suffix(".zip")), r"01\.png: is a link"),
    "half a zip": (lambda p: cut(make_zip(p.with_suffix(".zip"), F)), r"source\.zip: not a zip archive, or cut short"),
    "a zip whose index is damaged": (
        lambda p: spoilt(make_zip(p.with_suffix(".zip"), F), b"PK\1\2"),
        "source.zip: damaged",
    ),
    "a zip whose image is damaged": (
        lambda p: spoilt(make_zip(p.with_suffix(".zip"), F), b"IDAT"),
        r"zip: \d+\.png: cannot",
    ),
    "a damaged zip of idx": (
        lambda p: spoilt(make_zip(p.with_suffix(".zip"), mnist()), b"\0\0\x08\x03"),
        r"source\.zip: train-images-idx3-ubyte: cut short or damaged",
    ),
    "a broken link": (lambda p: broken_link(make_folder(p, F)), r"99\.png: cannot be read"),
    "half a tar": (lambda p: cut(make_tar(p.with_suffix(".tar"), F)), r"source\.tar: cut short"),
    "half a tar.gz": (lambda p: cut(make_tar(p.with_suffix(".tar.gz"), F)), r"source\.tar\.gz: cut short"),
    "half an npz": (lambda p: cut(make_npz(p.with_suffix(".npz"), images=PIXELS)), r"source\.npz: cannot be read"),
    "npz of floats": (
        lambda p: make_npz(p.with_suffix(".npz"), images=PIXELS / 2.0),
        r"source\.npz: `images` is float",
    ),
    "npz of channels first": (
        lambda p: make_npz(p.with_suffix(".npz"), images=PIXELS.transpose(0, 3, 1, 2)),
        r"source\.npz: `images` is uint8 \[12, 3, 32, 32\]",
    ),
    "npz of other names": (lambda p: make_npz(p.with_suffix(".npz"), x=PIXELS), r"no array `images`, only x"),
    "npz of objects": (
        lambda p: make_npz(p.with_suffix(".npz"), images=np.array([Evil()], dtype=object)),
        r"source\.npz: cannot be read",
    ),
    "npz, too few labels": (
        lambda p: make_npz(p.with_suffix(".npz"), images=PIXELS, labels=LABELS[:-1]),
        r"source\.npz: `labels` is int64 \[11\]; 12",
    ),
    "idx, too few labels": (
        lambda p: make_folder(p, altered(mnist(), **{"train-labels-idx1-ubyte": idx(LABELS[:-1])})),
        r"train-images-idx3-ubyte: 12 images, but train-labels-idx1-ubyte holds \[11\]",
    ),
    "half an idx": (
        lambda p: make_folder(p, altered(mnist(), **{"train-images-idx3-ubyte": idx(PIXELS[..., 0])[:-1]})),
        r"train-images-idx3-ubyte: fewer bytes",
    ),
    "half an idx.gz": (
        lambda p: make_folder(
            p, altered(mnist(".gz"), **{"train-images-idx3-ubyte": gzip.compress(idx(PIXELS[..., 0]))[:-99]})
        ),
        r"train-images-idx3-ubyte\.gz: cut short",
    ),
    "idx that promises much": (
        lambda p: make_folder(p, {"x-images-idx3-ubyte": struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**15, 2**15)}),
        r"x-images-idx3-ubyte: .*bomb",
    ),
    "idx of many dimensions": (
        lambda p: make_folder(p, altered(mnist(), **{"train-labels-idx1-ubyte": b"\0\0\x08\x41" + bytes(300)})),
        r"train-labels-idx1-ubyte: not an idx file of unsigned bytes",
    ),
    "npy whose header is cut short": (
        lambda p: make_folder(p, {"images.npy": npy(PIXELS), "labels.npy": headed("{'shape': (12,\n")}),
        r"labels\.npy: cannot be read",
    ),
    "npz whose header is cut short": (
        lambda p: make_zip(p.with_suffix(".npz"), {"images.npy": headed("{'shape': (12,\n")}),
        r"source\.npz: cannot be read",
    ),
    "a damaged zip of Arrow": (
        lambda p: spoilt(LABELLED["arrow: saved to disk, zip"](p.with_suffix(".zip")), b"IDAT"),
        r"data-00000-of-00001\.arrow: cannot be read \(Bad CRC-32",
    ),
    "cifar, too few labels": (
        lambda p: make_folder(p, altered(cifar(), data_batch_2=batch(PIXELS[5:], LABELS[6:]))),
        r"data_batch_2: 7 images, but 6 labels",
    ),
    "half a batch": (
        lambda p: make_folder(p, altered(cifar(), data_batch_2=batch(PIXELS[5:], LABELS[5:])[:-200])),
        r"data_batch_2: not a batch of CIFAR-10, or cut short",
    ),
    "a batch that runs a program": (
        lambda p: make_folder(p, altered(cifar(), data_batch_2=pickle.dumps({"data": Evil()}))),
        r"data_batch_2: contains (posix|nt)\.system.*not safe",
    ),
    "a batch of objects": (
        lambda p: make_folder(p, altered(cifar(), data_batch_2=pickle.dumps({"data": np.array([{}])}, protocol=2))),
        r"data_batch_2: contains numbers of type 'O8'",
    ),
    "a class without image": (
        lambda p: make_tar(p.with_suffix(".tar"), {k: v for k, v in samples().items() if k != "0003.png"}),
        r"0003\.cls: has no image",
    ),
    "an image without class": (
        lambda p: make_tar(p.with_suffix(".tar"), {k: v for k, v in samples().items() if k != "0003.cls"}),
        r"source\.tar: 0003\.png: has no class",
    ),
    "a class that is not a number": (
        lambda p: make_tar(p.with_suffix(".tar"), samples() | {"0003.cls": b"cat"}),
        r"0003\.cls: is not the number of a class",
    ),
    "EDM's labels of other images": (
        lambda p: make_zip(p.with_suffix(".zip"), {k: v for k, v in edm().items() if not k.endswith("3.png")}),
        r"source\.zip: dataset\.json: 00000/img00000003\.png is not there",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(fault: str, tmp_path: Path):
    make, message = BAD[fault]
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in" / "source")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        prepare(str(source), tmp_path / "out", Options(classifier=False))
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("scrimp-was-here").exists()


@pytest.mark.parametrize("form", LABELLED)
@pytest.mark.parametrize("damages", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_damaged_source_is_read_or_refused_in_a_line(form: str, damages: int, tmp_path: Path):
    """Seeded flips and truncations in any of its files."""
    whole = LABELLED[form](tmp_path / "source")
    rng = random.Random(form)
    refusals: list[str] = []
    for number in range(damages):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = folder / whole.name
        if whole.is_dir():
            shutil.copytree(whole, source)
        else:
            shutil.copy(whole, source)

        files_with_content = [path for path in [source, *source.rglob("*")] if path.is_file() and path.stat().st_size]
        file = rng.choice(sorted(files_with_content))
        content = bytearray(file.read_bytes())
        if rng.random() < 0.6:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        file.write_bytes(content)

        try:
            prepare(str(source), folder / "out", Options(classifier=False, size=8))
        except UserError as error:
            refusals.append(str(error))
        assert len(refusals) + len(list(tmp_path.glob("*/out/dataset.json"))) == number + 1
    assert "\n" not in "".join(refusals)


def test_what_unpacks_to_far_more_than_images_could_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree, "FREE_BYTES", 10_000)
    empty = np.zeros((1000, SIDE, SIDE), dtype=np.uint8)
    bombs = [
        make_npz(tmp_path / "a.npz", images=empty),
        make_folder(tmp_path / "b", {"train-images-idx3-ubyte.gz": gzip.compress(idx(empty))}),
        make_tar(tmp_path / "c.tar.gz", {"1.png": bytes(10**6)}),
    ]
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(10**6))
    for bomb in (*bombs, tmp_path / "d.zip"):
        with pytest.raises(UserError, match=rf"{bomb.name}.*decompression bomb"):
            prepare(str(bomb), tmp_path / "out", Options(classifier=False))


def test_an_image_file_may_be_only_so_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree, "MAX_BYTES", 2000)
    make_zip(tmp_path / "a.zip", files())
    with pytest.raises(UserError, match=r"12 x unpacks to more .*a\.zip: class\d/\d\d\.png"):
        prepare(str(tmp_path / "a.zip"), tmp_path / "out", Options(classifier=False))


def test_folders_may_be_made_of_links_even_in_a_circle(tmp_path: Path):
    make_folder(tmp_path / "real", files(labelled=False))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "all").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "linked")
    images, _ = prepared(tmp_path / "linked", tmp_path / "out")
    np.testing.assert_array_equal(images, PIXELS)


@pytest.mark.parametrize("archive", ["images_background_small1.zip"])
def test_omniglot_is_a_folder_an_alphabet(archive: str, tmp_path: Path, real_data: Path):
    source = real_data / "omniglot" / archive
    if not source.exists():
        pytest.skip(f"{source.name} is not here")
    manifest = prepare(str(source), tmp_path / "out", Options(size=28, classifier=False))
    assert manifest.classes is not None
    assert "Balinese" in manifest.classes
    assert (manifest.channels, manifest.size) == (1, 28)
    assert sum(split.count for split in manifest.splits.values()) == 2720
