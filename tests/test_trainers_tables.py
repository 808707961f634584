"""Images in tables and arrays, and beside tables of labels: as of Hugging Face, Kaggle, Quick, Draw! and CelebA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_forms import (
    COUNT,
    LABELS,
    NAMED,
    PIXELS,
    arrow_table,
    features,
    files,
    make_folder,
    npy,
    packed_pixel_table,
    parquet,
    pixel_table,
    saved_to_disk,
)

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare

FINE_AND_COARSE = features(
    fine={"_type": "ClassLabel", "names": ["cat", "cod", "dog"]},
    coarse={"_type": "ClassLabel", "names": ["fish", "mammal"]},
)
COARSE = np.array([1, 0, 1])[LABELS]


def prepared(source: Path, tmp_path: Path, **options: Any) -> Manifest:
    return prepare(str(source), tmp_path / "out", Options(classifier=False, near=0, **options))


def counts(manifest: Manifest) -> dict[str, list[int] | None]:
    return {name: split.per_class for name, split in manifest.splits.items()}


def table(name: str, content: str, images: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda path: make_folder(path, images | {name: content.encode()})


# Splits.


@pytest.mark.parametrize(
    "content",
    [
        {
            "data/test-00000-of-00001.parquet": parquet(arrow_table(8, COUNT, NAMED, label=LABELS[8:])),
            "data/train-00000-of-00001.parquet": parquet(arrow_table(0, 8, NAMED, label=LABELS[:8])),
        },
        {
            "train/data-00000-of-00001.arrow": saved_to_disk(arrow_table(0, 8, NAMED, label=LABELS[:8])),
            "validation/data-00000-of-00001.arrow": saved_to_disk(arrow_table(8, COUNT, NAMED, label=LABELS[8:])),
        },
        {"fer2013.csv": packed_pixel_table(["Training"] * 8 + ["PublicTest", "PrivateTest"] * 2)},
    ],
    ids=["parquet", "saved to disk", "FER2013"],
)
def test_the_test_split_of_a_table_is_held_out(content, tmp_path):
    manifest = prepared(make_folder(tmp_path / "source", content), tmp_path)
    assert counts(manifest) == {"train": [4, 4, 0], "holdout": [0, 0, 4]}


def test_a_test_table_without_labels_is_left_out_as_kaggle_has_one(tmp_path):
    source = make_folder(tmp_path / "source", {"train.csv": pixel_table(), "test.csv": pixel_table(labelled=False)})
    manifest = prepared(source, tmp_path, holdout=0)
    assert counts(manifest) == {"train": [4, 4, 4]}
    assert manifest.summary.skipped == {"in test.csv, which has no labels": COUNT}


# Which column.


@pytest.mark.parametrize(("column", "classes"), [("fine", ["cat", "cod", "dog"]), ("coarse", ["fish", "mammal"])])
def test_of_several_columns_of_classes_the_user_chooses(column, classes, tmp_path):
    rows = arrow_table(metadata=FINE_AND_COARSE, fine=LABELS, coarse=COARSE)
    source = make_folder(tmp_path / "source", {"x.parquet": parquet(rows)})
    with pytest.raises(UserError, match="fine, coarse are columns of classes; choose one with --label-column"):
        prepared(source, tmp_path)

    manifest = prepared(source, tmp_path, holdout=0, label_column=column)
    assert manifest.classes == classes
    assert counts(manifest) == {"train": np.bincount(LABELS if column == "fine" else COARSE).tolist()}


def test_captions_of_a_table_are_kept(tmp_path):
    rows = arrow_table(text=[f"a  picture of\n{label}" for label in LABELS])
    manifest = prepared(make_folder(tmp_path / "source", {"x.parquet": parquet(rows)}), tmp_path, holdout=0)
    assert manifest.modality == "captioned"


BREEDS = "id,breed\n" + "".join(f"{i:02d},breed{label}\n" for i, label in enumerate(LABELS))
ATTRIBUTES = f"{COUNT}\nBald Smiling\n" + "".join(f"{i:02d}.png  1 {1 if i < 5 else -1}\n" for i in range(COUNT))


@pytest.mark.parametrize(
    ("file", "content", "column", "classes", "per_class"),
    [
        ("labels.csv", BREEDS, "breed", ["breed0", "breed1", "breed2"], [4, 4, 4]),
        ("list_attr_celeba.txt", ATTRIBUTES, "Smiling", ["Smiling", "not Smiling"], [5, 7]),
    ],
    ids=["Kaggle's names without endings", "CelebA's attributes"],
)
def test_a_table_beside_images_gives_the_classes_of_a_column(file, content, column, classes, per_class, tmp_path):
    source = table(file, content, files(labelled=False))(tmp_path / "source")
    options = {"labels": str(source / file), "label_column": column}
    manifest = prepared(source, tmp_path, holdout=0, **options)
    assert manifest.classes == classes
    assert counts(manifest) == {"train": per_class}


# What is refused.

UNLABELLED_TEST = {
    "train.parquet": parquet(arrow_table(0, 8, NAMED, label=LABELS[:8])),
    "test.parquet": parquet(arrow_table(8, COUNT, NAMED, label=[-1] * 4)),
}
TWO_COLUMNS_OF_IMAGES = arrow_table(mask=[{"bytes": b"", "path": None}] * COUNT)
BAD: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "half a parquet file": ({"x.parquet": parquet(arrow_table())[:5000]}, {}, r"x\.parquet: cannot be read"),
    "an Arrow file of another kind": ({"x.arrow": b"hello"}, {}, r"x\.arrow: cannot be read"),
    "two columns of images": (
        {"x.parquet": parquet(TWO_COLUMNS_OF_IMAGES)},
        {},
        r"several columns of images \(image, mask\)",
    ),
    "no column of images": ({"x.parquet": parquet(arrow_table(label=LABELS).drop(["image"]))}, {}, "no column of ima"),
    "a test split without labels": (UNLABELLED_TEST, {}, r"a row has no class: its label is -1; .*--labels none"),
    "files of different columns": (
        {"a.parquet": parquet(arrow_table()), "b.parquet": parquet(arrow_table(label=LABELS))},
        {},
        r"b\.parquet: has other columns than .*a\.parquet",
    ),
    "no such column": (
        {"x.parquet": parquet(arrow_table(label=LABELS))},
        {"label_column": "breed"},
        "has no column breed, only image, label",
    ),
    "an image that cannot be decoded": (
        {"x.parquet": parquet(arrow_table().set_column(0, "image", [[b"hello"] * COUNT]))},
        {},
        r"12 of 12 images cannot be used .*x\.parquet: row 0,",
    ),
    "arrays of splits": (
        {"x_train.npy": npy(PIXELS), "x_test.npy": npy(PIXELS)},
        {},
        r"x_t\w+\.npy looks like a split",
    ),
    "an array of floats": ({"x.npy": npy(PIXELS / 255)}, {}, r"x\.npy: is float64 \[12, 32, 32, 3\]"),
    "an array of objects": ({"x.npy": npy(np.array([{}], dtype=object))}, {}, r"x\.npy: cannot be read"),
    "too few labels": (
        {"x.npy": npy(PIXELS), "labels.npy": npy(LABELS[1:])},
        {},
        r"labels\.npy: is int64 \[11\]; 12 whole numbers",
    ),
    "a pixel of 256": ({"x.csv": pixel_table().replace(b",255", b",256")}, {}, r"x\.csv: line \d+: is not a row of"),
    "a row cut short": ({"x.csv": pixel_table()[:-50]}, {}, r"x\.csv: line 13: is not a row of"),
    "pixels of no square": (
        {"x.csv": packed_pixel_table().replace(b",Training", b" 0,Training")},
        {},
        r"x\.csv: line 2: 1025 pixels do not fill a square",
    ),
    "a column of labels without a table": (files(labelled=False), {"label_column": "breed"}, "--labels FILE"),
    "a column of labels of an array": ({"x.npy": npy(PIXELS)}, {"label_column": "breed"}, "--label-column is for"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(fault, tmp_path):
    content, options, message = BAD[fault]
    source = make_folder(tmp_path / "source", content)
    with pytest.raises(UserError, match=message) as error:
        prepared(source, tmp_path, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_without_labels_a_test_split_that_has_none_is_read(tmp_path):
    manifest = prepared(make_folder(tmp_path / "source", UNLABELLED_TEST), tmp_path, labels="none")
    assert (manifest.splits["train"].count, manifest.splits["holdout"].count) == (8, 4)
    assert manifest.classes is None
