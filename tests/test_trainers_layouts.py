"""Image files as people keep them: which folders are classes, which are splits, and what is left out."""

import io
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scrimp_platform.cli import main
from scrimp_platform.report import dataset as words
from scrimp_trainers.common.errors import UserError, printable
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare


def draw(path: Path, seed: int, side: int = 8, form: str = "PNG") -> None:
    """Write an image of colour noise, which no other seed has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, form)


def fill(root: Path, *folders: str, count: int = 6, ending: str = "png") -> Path:
    """Write images into folders, each with a seed of its own."""
    for folder in folders:
        for i in range(count):
            draw(root / folder / f"{i}.{ending}", zlib.crc32(folder.encode()) + i)
    return root


def made(source: Path, out: Path, **options) -> Manifest:
    return prepare(str(source), out, Options(**{"classifier": False, "near": 0, **options}))


def counts(manifest: Manifest) -> dict[str, int]:
    return {str(name): split.count for name, split in manifest.splits.items()}


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("test", ["test", "val", "VALID", "validation", "dev", "eval"])
def test_folders_of_splits_are_no_classes(train, test, tmp_path):
    fill(tmp_path / "in", f"{train}/cat", f"{train}/dog")
    fill(tmp_path / "in", f"{test}/cat", f"{test}/dog", count=2)
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["cat", "dog"]
    assert counts(manifest) == {"train": 12, "holdout": 4}
    assert f"held out: {test}/ (4 images)" in manifest.summary.notes


WNIDS = ("n01440764", "n01443537", "n01484850")


def imagenet(root: Path, val: str) -> Path:
    """Make a small ImageNet: `val` says where its validation images are, in folders or in one with a list."""
    rows = ["ImageId,PredictionString"]
    for number, name in enumerate(WNIDS):
        for i in range(5):
            draw(root / "train" / name / f"{name}_{i}.JPEG", 10 * number + i, form="JPEG")
        for i in range(2):
            stem = f"ILSVRC2012_val_{2 * number + i:08d}"
            folder = root / "val" / name if val == "folders" else root / "val"
            draw(folder / f"{stem}.JPEG", 100 + 10 * number + i, form="JPEG")
            rows.append(f"{stem},{name} 1 2 3 4 {name} 1 1 2 2 ")
    draw(root / "test" / "ILSVRC2012_test_00000001.JPEG", 999, form="JPEG")
    if val != "folders":
        (root / val / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("val", ["folders", "val", "."])
def test_imagenet_with_its_validation_images_in_folders_or_in_a_list(val, tmp_path):
    manifest = made(imagenet(tmp_path / "in", val), tmp_path / "out")
    assert manifest.classes == list(WNIDS)
    assert counts(manifest) == {"train": 15, "holdout": 6}
    assert manifest.splits["holdout"].per_class == [2, 2, 2]
    assert manifest.summary.skipped == {"in test/, which has no labels": 1}


@pytest.mark.parametrize("val", ["folders", "."])
def test_some_of_imagenets_classes(val, tmp_path):
    (tmp_path / "ten.txt").write_text(f"{WNIDS[2]}\n\n{WNIDS[0]}\n")
    root = imagenet(tmp_path / "in", val)
    (root / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").write_bytes(b"\xff\xd8\xff damaged, and never opened")
    manifest = made(root, tmp_path / "out", classes=str(tmp_path / "ten.txt"))
    assert manifest.classes == [WNIDS[0], WNIDS[2]]
    assert manifest.splits["train"].per_class == [5, 5]
    assert manifest.splits["holdout"].per_class == [2, 2]
    assert manifest.summary.skipped["of a class that --classes does not list"] == 7
    assert manifest.provenance["classes"] == "ten.txt"


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [("n01440764\nn09999999\n", r"n09999999 is none of the 3 classes of the training images"),
     ("\n", "lists no class"),
     (None, "cannot be read")],
)  # fmt: skip
def test_a_list_of_classes_that_cannot_be_used_is_refused(listed, complaint, tmp_path):
    if listed is not None:
        (tmp_path / "list.txt").write_text(listed)
    with pytest.raises(UserError, match=complaint):
        made(imagenet(tmp_path / "in", "folders"), tmp_path / "out", classes=str(tmp_path / "list.txt"))


def test_classes_are_of_files_of_images(tmp_path):
    (tmp_path / "list.txt").write_text("1\n")
    with pytest.raises(UserError, match="--classes is for files of images, but the source is digits"):
        prepare("digits", tmp_path / "out", Options(classes=str(tmp_path / "list.txt")))
    with pytest.raises(UserError, match="1 is none of the 0 classes"):
        made(fill(tmp_path / "in", "."), tmp_path / "out", classes=str(tmp_path / "list.txt"))


def test_tiny_imagenet_as_downloaded(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(("n01443537", "n01629819")):
        for i in range(5):
            draw(root / "train" / name / "images" / f"{name}_{i}.JPEG", 10 * number + i, form="JPEG")
        (root / "train" / name / f"{name}_boxes.txt").write_text("n01443537_0.JPEG\t0\t10\t63\t58\n")
    lines = []
    for i in range(4):
        draw(root / "val" / "images" / f"val_{i}.JPEG", 100 + i, form="JPEG")
        lines.append(f"val_{i}.JPEG\t{('n01443537', 'n01629819')[i % 2]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    for i in range(3):
        draw(root / "test" / "images" / f"test_{i}.JPEG", 200 + i, form="JPEG")
    (root / "wnids.txt").write_text("n01443537\nn01629819\n")

    manifest = made(root, tmp_path / "out")
    assert manifest.classes == ["n01443537", "n01629819"]
    assert counts(manifest) == {"train": 10, "holdout": 4}
    assert manifest.splits["holdout"].per_class == [2, 2]
    assert manifest.summary.skipped == {"not an image (.txt)": 3, "in test/, which has no labels": 3}


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_a_hugging_face_imagefolder(table, tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        rows = []
        for i in range(count):
            draw(tmp_path / "in" / split / f"{i}.png", (0 if split == "train" else 50) + i)
            rows.append({"file_name": f"{i}.png", "label": ("even", "odd")[i % 2]})
        lines = [json.dumps(row) for row in rows]
        if table.endswith(".csv"):
            lines = ["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)]
        (tmp_path / "in" / split / table).write_text("\n".join(lines) + "\n")
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["even", "odd"]
    assert counts(manifest) == {"train": 6, "holdout": 2}
    assert manifest.splits["train"].per_class == [3, 3]


def test_ffhq_is_one_class_without_its_thumbnails(tmp_path):
    fill(tmp_path / "ffhq", "images1024x1024/00000", "images1024x1024/01000", count=5)
    fill(tmp_path / "ffhq", "thumbnails128x128/00000", count=5)
    manifest = made(tmp_path / "ffhq", tmp_path / "out", holdout=2)
    assert manifest.classes is None
    assert counts(manifest) == {"train": 8, "holdout": 2}
    assert manifest.summary.skipped == {"in thumbnails128x128/": 5}
    assert any("only number images" in note for note in manifest.summary.notes)
    assert made(tmp_path / "ffhq", tmp_path / "folders", labels="folder").classes == ["00000", "01000"]


def edm_zip(path: Path, labels: object, root: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(8):
            image = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image, "PNG")
            archive.writestr(f"{root}{i // 4:05d}/img{i:08d}.png", image.getvalue())
        archive.writestr(f"{root}dataset.json", labels if isinstance(labels, str) else json.dumps({"labels": labels}))
    return path


LABELS = [[f"{i // 4:05d}/img{i:08d}.png", i % 4] for i in range(8)]


@pytest.mark.parametrize("root", ["", "mydata/", "a/b/"])
def test_an_edm_zip_has_the_classes_of_its_list_wherever_its_root_is(root, tmp_path):
    manifest = made(edm_zip(tmp_path / "in.zip", LABELS, root), tmp_path / "out", holdout=0)
    assert manifest.classes == ["0", "1", "2", "3"]
    assert manifest.splits["train"].per_class == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*LABELS[:7], [LABELS[7][0], 1.5]], "its label 1.5 is not a whole number"),
        ([*LABELS[:7], [LABELS[7][0], True]], "its label True is not a whole number"),
        ('{"labels": [["00000/img00000000.png", 1e999]]}', "its label inf is not a whole number"),
        ('{"labels": [["00000/img00000000.png", NaN]]}', "its label nan is not a whole number"),
        ([*LABELS, [LABELS[0][0], 3]], "has two labels, 0 and 3"),
        (LABELS[:7], "has no label"),
        ("[" * 100_000, "not a list of labels"),
    ],
)
def test_a_list_of_labels_that_makes_no_sense_is_refused(labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        made(edm_zip(tmp_path / "in.zip", labels), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_known_by_their_content_and_others_are_counted(tmp_path):
    for i, name in enumerate(("a.jpg", "b.jfif", "c", "d.dat")):
        draw(tmp_path / "in" / name, i, form="JPEG")
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / "clip.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "in" / "README").write_text("no ending")
    (tmp_path / "in" / ".DS_Store").write_bytes(b"x")
    manifest = made(tmp_path / "in", tmp_path / "out", holdout=0)
    assert counts(manifest) == {"train": 4}
    assert manifest.summary.skipped == {
        "not an image (.txt)": 1,
        "not an image (.mp4)": 1,
        "not an image (no ending)": 1,
        "hidden files and folders": 1,
    }
    lines = [line for line in words.summary_lines(manifest) if line.startswith("skipped: ")]
    assert sorted(lines) == [
        "skipped: 1 x hidden files and folders",
        "skipped: 1 x not an image (.mp4)",
        "skipped: 1 x not an image (.txt)",
        "skipped: 1 x not an image (no ending)",
    ]


@pytest.mark.parametrize("name", ["photo.avif", "PHOTO.AVIF", "photo"])
def test_avif_is_read(name, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "in" / name, "AVIF", quality=100, subsampling="4:4:4")
    Image.new("RGB", (16, 16), (10, 20, 30)).save(tmp_path / "in" / "other.png")
    made(tmp_path / "in", tmp_path / "out", holdout=0)
    images, _, _ = open_dataset(tmp_path / "out").images("train")
    colours = sorted(images.mean((2, 3)).tolist(), reverse=True)
    assert colours[0] == pytest.approx([200, 100, 50], abs=2)
    assert colours[1] == [10, 20, 30]


def test_the_frames_of_an_avif_are_counted_and_taken_on_request(tmp_path):
    pictures = [Image.new("RGB", (16, 16), (60 * i, 0, 0)) for i in range(4)]
    (tmp_path / "in").mkdir()
    moves = tmp_path / "in" / "moves.avif"
    pictures[0].save(moves, save_all=True, append_images=pictures[1:], duration=100)
    first = made(tmp_path / "in", tmp_path / "first", holdout=0)
    assert first.summary.skipped == {"other pages or frames of a file (--frames all takes them)": 3}
    assert counts(made(tmp_path / "in", tmp_path / "every", holdout=0, frames="all")) == {"train": 4}


def test_a_damaged_avif_is_one_line(tmp_path):
    """Its header is whole, so only the decoder sees it."""
    file = tmp_path / "in" / "photo.avif"
    draw(file, 1, side=64, form="AVIF")
    data = file.read_bytes()
    start = data.index(b"mdat") + 4
    file.write_bytes(data[:start] + b"\xff" * (len(data) - start))
    with pytest.raises(UserError, match=r"in/photo\.avif: not an image, or cut short"):
        made(tmp_path / "in", tmp_path / "out", holdout=0)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1"])
def test_a_heic_file_is_an_image_that_cannot_be_read_here(brand, tmp_path):
    """Neither is it left out in silence, nor taken for something else, with its ending or without."""
    draw(tmp_path / "in" / "a.png", 1)
    box = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic"
    for name in ("IMG_0001.HEIC", "photo"):
        (tmp_path / "in" / name).write_bytes(box + bytes(100))
    reason = "is in the format HEIC, which cannot be read here; convert it to PNG or JPEG first"
    with pytest.raises(UserError) as error:
        made(tmp_path / "in", tmp_path / "out", holdout=0)
    assert str(error.value) == (
        f"2 of 3 images cannot be used (--skip-bad prepares the rest): 2 x {reason}: "
        f"{tmp_path}/in/IMG_0001.HEIC, {tmp_path}/in/photo"
    )

    rest = made(tmp_path / "in", tmp_path / "out", holdout=0, skip_bad=True)
    assert counts(rest) == {"train": 1}
    assert rest.summary.skipped == {}
    assert rest.summary.bad == [f"in/IMG_0001.HEIC: {reason}", f"in/photo: {reason}"]
    assert f"left out: 2 unusable images: {'; '.join(rest.summary.bad)}" in words.summary_lines(rest)


def test_pages_and_frames_are_counted_and_taken_on_request(tmp_path):
    pages = [Image.fromarray(np.full((8, 8), 25 * i, dtype=np.uint8)) for i in range(9)]
    (tmp_path / "in").mkdir()
    pages[0].save(tmp_path / "in" / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "in" / "one.png")
    first = made(tmp_path / "in", tmp_path / "first", holdout=0)
    assert counts(first) == {"train": 2}
    assert first.summary.skipped == {"other pages or frames of a file (--frames all takes them)": 8}
    every = made(tmp_path / "in", tmp_path / "every", holdout=0, frames="all")
    images, _, _ = open_dataset(tmp_path / "every").images("train")
    assert counts(every) == {"train": 10}
    assert sorted(set(images[:, 0, 0, 0].tolist())) == [25 * i for i in range(9)]


@pytest.mark.parametrize("name", ["moves.png", "moves.gif", "moves.webp", "moves.jpg", "moves"])
def test_frames_are_told_by_content(name, tmp_path):
    kind = name.partition(".")[2].upper() or "GIF"
    kind = "GIF" if kind == "JPG" else kind
    pictures = [Image.fromarray(np.full((8, 8), 60 * i, dtype=np.uint8)) for i in range(4)]
    (tmp_path / "in").mkdir()
    pictures[0].save(tmp_path / "in" / name, kind, save_all=True, append_images=pictures[1:], lossless=True)
    pictures[0].save(tmp_path / "in" / "one.png")
    first = made(tmp_path / "in", tmp_path / "first", holdout=0)
    assert first.summary.skipped == {"other pages or frames of a file (--frames all takes them)": 3}
    assert counts(made(tmp_path / "in", tmp_path / "every", holdout=0, frames="all")) == {"train": 5}


def test_the_previews_in_a_jpeg_are_no_frames(tmp_path):
    pictures = [Image.fromarray(np.full((8, 8), 60 * i, dtype=np.uint8)) for i in range(2)]
    pictures[0].save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=pictures[1:])
    assert counts(made(tmp_path / "photo.jpg", tmp_path / "out", holdout=0, frames="all")) == {"train": 1}


def test_labels_in_a_table_above_the_images(tmp_path):
    rows = ["file_name,label"]
    for i in range(12):
        draw(tmp_path / "in" / "images" / f"{i}.png", i)
        rows.append(f"{i}.png,{('even', 'odd')[i % 2]}")
    (tmp_path / "in" / "labels.csv").write_text("\n".join(rows))
    manifest = made(tmp_path / "in", tmp_path / "out", holdout=0)
    assert manifest.classes == ["even", "odd"]
    assert manifest.splits["train"].per_class == [6, 6]
    assert made(tmp_path / "in", tmp_path / "none", labels="none").classes is None

    given = tmp_path / "mine.csv"
    given.write_text("\n".join(["path,class", *(f"images/{i}.png,{'low' if i < 3 else 'high'}" for i in range(12))]))
    assert made(tmp_path / "in", tmp_path / "mine", labels=str(given)).classes == ["high", "low"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\n0.png,a\n", "1.png has no label"),
        ("file_name,label\n0.png,a\n1.png,b\n2.png,c\n", "2.png is not there"),
        ("file_name,label\n0.png,a\n1.png,\n", "neither a text nor a whole number"),
        ("file_name,label\n0.png,a\n0.png,b\n1.png,a\n", "has two labels, a and b"),
    ],
)
def test_a_table_that_does_not_match_the_images_is_refused(text, message, tmp_path):
    for i in range(2):
        draw(tmp_path / "in" / f"{i}.png", i)
    (tmp_path / "in" / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        made(tmp_path / "in", tmp_path / "out")


def test_a_table_without_labels_is_named(tmp_path):
    fill(tmp_path / "in", "cat", "dog")
    (tmp_path / "in" / "metadata.csv").write_text("file_name,source\ncat/0.png,a cat\n")
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["cat", "dog"]
    assert any(note.startswith("metadata.csv is not used") for note in manifest.summary.notes)


def test_a_table_above_the_splits_has_the_classes_of_all(tmp_path):
    fill(tmp_path / "in", "train", "test", "more", count=4)
    rows = [f"{split}/{i}.png,{('even', 'odd')[i % 2]}" for split in ("train", "test") for i in range(4)]
    (tmp_path / "in" / "more").rename(tmp_path / "in" / "val")
    (tmp_path / "in" / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert counts(manifest) == {"train": 4, "holdout": 4}
    assert manifest.splits["holdout"].per_class == [2, 2]
    assert manifest.summary.skipped == {"in val/, which has no labels": 4}
    assert manifest.summary.notes == ["classes from metadata.csv", "held out: test/ (4 images)"]

    given = tmp_path / "mine.csv"
    (tmp_path / "in" / "metadata.csv").rename(given)
    named = made(tmp_path / "in", tmp_path / "named", labels=str(given))
    assert (counts(named), named.classes) == (counts(manifest), manifest.classes)
    given.write_text("\n".join(["file_name,label", *rows[1:]]))
    with pytest.raises(UserError, match=r"train/0\.png has no label"):
        made(tmp_path / "in", tmp_path / "short", labels=str(given))


def test_an_edm_list_in_each_split(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / "in", f"{split}/00000", count=4)
        labels = [[f"00000/{i}.png", i % 2] for i in range(4)]
        (tmp_path / "in" / split / "dataset.json").write_text(json.dumps({"labels": labels}))
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["0", "1"]
    assert manifest.splits["holdout"].per_class == [2, 2]


@pytest.mark.parametrize(
    "text", ["file;label\n{a};x\n{b};y\n", "file\tlabel\n{a}\tx\n{b}\ty\n", "file, label\n{a}, x\n{b}, y\n"]
)
def test_tables_of_spreadsheets(text, tmp_path):
    fill(tmp_path / "in", "one", "two", count=1)
    (tmp_path / "in" / "labels.csv").write_text(text.format(a="one\\0.png", b="two\\0.png"))
    assert made(tmp_path / "in", tmp_path / "out", holdout=0).classes == ["x", "y"]


def test_a_line_without_a_label_is_named(tmp_path):
    fill(tmp_path / "in", "", count=2)
    lines = [{"file_name": "0.png"}, {"file_name": "1.png", "label": "x"}]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(UserError, match=r"0\.png: the label None is neither a text nor a whole number"):
        made(tmp_path / "in", tmp_path / "out")


def test_images_at_mixed_depths_are_taken_with_flat_alone(tmp_path):
    fill(tmp_path / "in", "cat", "dog")
    draw(tmp_path / "in" / "loose.png", 999)
    with pytest.raises(UserError, match=r"loose\.png: is beside folders of images.*--flat"):
        made(tmp_path / "in", tmp_path / "out")
    manifest = made(tmp_path / "in", tmp_path / "flat", flat=True, holdout=0)
    assert (manifest.classes, counts(manifest)) == (None, {"train": 13})


def test_a_folder_beside_those_of_splits_is_refused(tmp_path):
    fill(tmp_path / "in", "train/cat", "train/dog", "test/cat", "extra/cat")
    with pytest.raises(UserError, match="extra/: is beside test/, which is a split"):
        made(tmp_path / "in", tmp_path / "out")


def test_a_held_out_class_that_is_never_trained_on_is_refused(tmp_path):
    fill(tmp_path / "in", "train/cat", "train/dog", "test/bird")
    with pytest.raises(UserError, match="test/: class bird is none of the training images'"):
        made(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("cat/train", "cat/test", "dog/train"), "cat/test/: a split inside another folder"),
        (("pets/train/cat", "pets/test/cat", "cars/train/audi"), "prepare cars/ by itself"),
        (("train/cat/val", "test/cat"), "train/cat/val/: a split inside another folder"),
        (("images/train", "labels/train"), "images/train/: a split inside another folder"),
        (("train2017", "val2017"), "train2017/, val2017/: classes or splits"),
        (("trainA", "trainB", "testA", "testB"), "trainA/, testA/: classes or splits"),
        (("train_images/cat", "test_images/cat"), "train_images/, test_images/: classes or splits"),
        (("16x16", "32x32"), "16x16/, 32x32/: sizes of the same images are no classes"),
        (("png1000px", "png250px"), "png1000px/, png250px/: sizes of the same images are no classes"),
        (("images", "masks"), "images/: does not hold the images of one class, and is beside masks/"),
        (
            ("train/images", "train/masks", "test/images", "test/masks"),
            "train/: images/: does not hold the images of one class",
        ),
        (("images1024x1024", "images256x256"), "is beside images256x256/"),
    ],
)
def test_folders_of_which_it_is_not_plain_what_they_are(folders, message, tmp_path):
    fill(tmp_path / "in", *folders, count=2)
    with pytest.raises(UserError, match=message):
        made(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert made(tmp_path / "in", tmp_path / "folders", labels="folder").classes
    assert counts(made(tmp_path / "in", tmp_path / "flat", flat=True, holdout=0)) == {"train": 2 * len(folders)}


def test_a_name_that_only_begins_like_a_split_is_a_class(tmp_path):
    fill(tmp_path / "in", "train_station", "trainer", "validator")
    assert made(tmp_path / "in", tmp_path / "out").classes == ["train_station", "trainer", "validator"]


def test_folders_inside_those_of_classes_are_pointed_out(tmp_path):
    fill(tmp_path / "in", "cat/2020", "cat/2021", "dog/images")
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["cat", "dog"]
    assert manifest.summary.notes == ["folders inside class folders are ignored, such as cat/2020/"]


def test_images_named_like_masks_are_pointed_out(tmp_path):
    for i, name in enumerate(("a.jpg", "a_mask.png", "b.jpg", "b_mask.png", "lone_mask.png")):
        draw(tmp_path / "in" / name, i, form="PNG")
    notes = made(tmp_path / "in", tmp_path / "out", holdout=0).summary.notes
    assert [note.partition(";")[0] for note in notes] == ["2 images are named like masks of others, such as a_mask"]


@pytest.mark.parametrize("names", [("caf\u00e9", "cafe\u0301"), ("a\nb", "a\\nb")])
def test_classes_that_look_the_same_are_refused(names, tmp_path):
    fill(tmp_path / "in", *names)
    with pytest.raises(UserError, match="two classes are both shown as"):
        made(tmp_path / "in", tmp_path / "out")


def test_empty_folders_are_counted_but_for_what_is_being_made(tmp_path):
    fill(tmp_path / "in", "cat", "dog")
    (tmp_path / "in" / "bird").mkdir()
    assert made(tmp_path / "in", tmp_path / "in" / "out").summary.skipped == {"empty folders": 1}


def test_classes_that_are_never_trained_on_are_pointed_out(tmp_path, capsys):
    fill(tmp_path / "in", *(f"c{i}" for i in range(12)), count=1)
    main.main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--no-classifier"])
    assert "WARNING: no training images of c0\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [("more.zip", r"1 x \.zip\); name one archive"), ("a.h5", r"1 x \.h5\); `scrimp prepare")],
)
def test_what_lies_there_instead_of_images_is_named(name, message, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=message):
        made(tmp_path / "in", tmp_path / "out")


def test_notes_and_kinds_are_one_line_each(tmp_path):
    fill(tmp_path / "in", "cat/a\nb", "cat/c", "dog", "_x\n", count=1)
    summary = made(tmp_path / "in", tmp_path / "out", holdout=0).summary
    assert summary.notes == [r"folders inside class folders are ignored, such as cat/a\nb/"]
    assert summary.skipped == {r"in _x\n/": 1}


@pytest.mark.parametrize("aside", ["_thumbs", "@eaDir", "thumbnails", "Thumbs", "cache", "$RECYCLE.BIN"])
def test_folders_of_copies_and_of_programs_are_no_classes(aside, tmp_path):
    fill(tmp_path / "in", "cat", "dog", aside, count=3)
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["cat", "dog"]
    assert manifest.summary.skipped == {f"in {aside}/": 3}


def test_hidden_folders_are_no_classes(tmp_path):
    fill(tmp_path / "in", "cat", "dog", ".cache", "cat/.thumbnails", count=3)
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.classes == ["cat", "dog"]
    assert counts(manifest) == {"train": 6}
    assert manifest.summary.skipped == {"hidden files and folders": 2}


def test_numbers_of_classes_are_in_their_order(tmp_path):
    fill(tmp_path / "in", *(str(i) for i in range(12)), count=1)
    assert made(tmp_path / "in", tmp_path / "out", holdout=0).classes == [str(i) for i in range(12)]


def test_what_is_no_file_is_never_opened(tmp_path):
    fill(tmp_path / "in", "cat", "dog")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    manifest = made(tmp_path / "in", tmp_path / "out")
    assert manifest.summary.skipped == {"not a regular file, such as a pipe": 1}


def test_folders_without_end_are_refused_in_a_line(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    start = here
    for _ in range(120):
        os.mkdir("d", dir_fd=here)
        here = os.open("d", os.O_RDONLY, dir_fd=here)
    with pytest.raises(UserError, match="more than 100 deep"):
        made(tmp_path, tmp_path.with_name("out"))
    os.close(start)


def test_a_name_that_is_no_text_is_refused_before_anything_is_read(tmp_path):
    folder = os.fsencode(tmp_path / "in") + b"/caf\xe9"
    os.makedirs(folder)  # noqa: PTH103 -- a name that no Path holds
    (tmp_path / "in" / "a.png").write_text("would be refused later")
    with pytest.raises(UserError, match=r"in: the name caf\\xe9 is not UTF-8 text; rename it"):
        made(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    fill(tmp_path / "in", "\x1b[31mred", "dog")
    main.main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--no-classifier"])
    assert "\x1b" not in capsys.readouterr().out
    (tmp_path / "in" / "dog" / "\x1b]0;title\x07.png").write_text("no image")
    with pytest.raises(SystemExit):
        main.main(["prepare", str(tmp_path / "in"), str(tmp_path / "bad")])
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count(r"\x1b]0;title\x07.png") == 1
    assert printable("naïve 画像.png") == "naïve 画像.png"
