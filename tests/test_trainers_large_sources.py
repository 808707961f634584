"""LSUN's database, CelebA-HQ's folder and Imagenette's tree, made up, with the sparse paper's numbers of images."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from source_forms import files, lsun, make_folder, png

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare


def pictures(count: int, side: int = 4) -> list[bytes]:
    """Encode different grey pictures."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)
    return [png(image) for image in images]


def prepared(source: Path, out: Path, **options: object) -> dict[str, int]:
    """Prepare without looking for near copies, and return how many images each split has."""
    manifest = prepare(str(source), out, Options(classifier=False, near=0, **options))  # type: ignore[arg-type]
    return {name: split.count for name, split in manifest.splits.items()}


def keys(folder: Path, split: str) -> set[int]:
    names, _ = open_dataset(folder).entries(split)  # type: ignore[arg-type]
    return set(map(int, names))


@pytest.fixture(scope="module")
def many():
    return pictures(13_200)


def test_bedrooms_of_lsun_have_the_papers_numbers_of_images(many, tmp_path):
    source = lsun(tmp_path / "bedroom_train_lmdb", many)
    assert prepared(source, tmp_path / "out", first=13_098, holdout=2500) == {"train": 10_598, "holdout": 2500}
    assert keys(tmp_path / "out", "train") | keys(tmp_path / "out", "holdout") == set(range(13_098))


def test_celeba_hq_has_the_papers_numbers_of_images(many, tmp_path):
    source = make_folder(tmp_path / "CelebA-HQ-img", {f"{i}.png": data for i, data in enumerate(many)})
    assert prepared(source, tmp_path / "out", first=13_000, holdout=500) == {"train": 12_500, "holdout": 500}


def test_imagenettes_own_validation_images_are_held_out(tmp_path):
    images = iter(pictures(90))
    classes = ["n01440764", "n02102040", "n03445777"]
    content = {"noisy_imagenette.csv": b"path,noisy_labels_0\n"}
    for split, count in (("train", 20), ("val", 10)):
        content |= {f"{split}/{name}/{name}_{i}.JPEG": next(images) for name in classes for i in range(count)}
    source = make_folder(tmp_path / "imagenette2-320", content)
    assert prepared(source, tmp_path / "out") == {"train": 60, "holdout": 30}
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest.classes == classes
    assert manifest.splits["holdout"].per_class == [10, 10, 10]
    with pytest.raises(UserError, match=r"--first: the source has test images of its own; .* --limit"):
        prepared(source, tmp_path / "never", first=5)


def test_more_first_images_than_there_are_are_refused(tmp_path):
    source = make_folder(tmp_path / "source", files(labelled=False))
    with pytest.raises(UserError, match=r"--first: 13 images requested, but there are 12"):
        prepared(source, tmp_path / "out", first=13)
    assert not (tmp_path / "out").exists()


# --- databases that cannot be read


def refused(source: Path, tmp_path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match):
        prepared(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_database_that_is_cut_short_is_refused(tmp_path):
    source = lsun(tmp_path / "bedroom", pictures(200, side=64))
    file = source / "data.mdb"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(source, tmp_path, r"bedroom: data.mdb is cut short")


@pytest.mark.parametrize("data", [b"", b"no database" * 1000])
def test_a_file_that_is_no_database_is_refused(tmp_path, data):
    source = make_folder(tmp_path / "bedroom", {"data.mdb": data})
    refused(source, tmp_path, r"bedroom: (not a database of LSUN, or damaged|data.mdb is cut short)")


def test_an_image_of_a_database_that_is_damaged_is_named_by_its_key(tmp_path):
    source = lsun(tmp_path / "bedroom", [*pictures(3), b"no image"])
    refused(source, tmp_path, rf"bedroom: {3:040x}: ")


def test_one_of_several_databases_has_to_be_named_and_an_archive_unpacked(tmp_path):
    (tmp_path / "scenes").mkdir()
    for name in ("bedroom_train_lmdb", "bedroom_val_lmdb"):
        lsun(tmp_path / "scenes" / name, pictures(3))
    refused(tmp_path / "scenes", tmp_path, r"2 databases; name the folder of one, such as .*bedroom_train_lmdb")
    archive = shutil.make_archive(str(tmp_path / "bedroom"), "zip", tmp_path / "scenes", "bedroom_train_lmdb")
    refused(Path(archive), tmp_path, r"unpack it first")


def test_without_the_package_the_line_says_what_to_install(tmp_path, monkeypatch):
    source = lsun(tmp_path / "bedroom", pictures(3))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    refused(source, tmp_path, r"pip install 'scrimp\[lsun\]'")
