"""Images that `scrimp prepare` takes only by option, and what it says of its sources."""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scrimp_platform.report import dataset as words
from scrimp_trainers import fit
from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import manifest as manifests
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.manifest import Manifest
from scrimp_trainers.data.options import Options
from scrimp_trainers.ingest import prepare
from scrimp_trainers.metrics import names
from scrimp_trainers.recipe.recipe import load as load_recipe
from scrimp_trainers.recipe.scoring import Scoring


def made(tmp_path: Path, out: str = "out", **options: Any) -> Manifest:
    return prepare(str(tmp_path / "in"), tmp_path / out, Options(**{"holdout": 0, "classifier": False, **options}))


def first(tmp_path: Path, out: str = "out") -> np.ndarray:
    """The first image, [H, W, C]."""
    images, _, keys = open_dataset(tmp_path / out).images("train")
    return images[keys.index("00000000")].transpose(1, 2, 0)


def noise(*shape: int, seed: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def save(tmp_path: Path, name: str, content: bytes | np.ndarray) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)


# --- 16 bits


def png16(pixels: np.ndarray) -> bytes:
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(pixels: np.ndarray) -> bytes:
    height, width, channels = pixels.shape
    data = pixels.astype("<u2").tobytes()
    fields = {256: width, 257: height, 258: 16, 259: 1, 262: 1 if channels == 1 else 2, 273: 0, 277: channels}
    fields |= {278: height, 279: len(data)}
    end = 8 + 2 + 12 * len(fields) + 4
    if channels == 3:
        fields[258] = end
    fields[273] = end + 6
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, channels if tag == 258 else 1, value)
        for tag, value in fields.items()
    )
    directory = struct.pack("<H", len(fields)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 16, 16, 16) + data


def pnm16(pixels: np.ndarray) -> bytes:
    height, width, channels = pixels.shape
    kind = "P5" if channels == 1 else "P6"
    return f"{kind}\n# 16 bits\n{width} {height}\n65535\n".encode() + pixels.astype(">u2").tobytes()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("form", "end"), [(png16, "png"), (tiff16, "tif"), (pnm16, "ppm")])
def test_16_bits_are_refused_or_scaled_in_every_format(
    form: Callable[[np.ndarray], bytes], end: str, channels: int, tmp_path: Path
):
    pixels = noise(8, 8, channels, high=65_536)
    pixels[0, :3, 0] = (0, 65_535, 100 * 257)
    save(tmp_path, f"1.{end}", form(pixels))

    with pytest.raises(UserError, match=r"has 16 bits per channel; --depth16 scale"):
        made(tmp_path)

    summary = made(tmp_path, depth16="scale").summary
    scaled = first(tmp_path)
    # Pillow keeps the upper 8 bits of 16-bit colour, so it may differ from value / 257 by 1.
    assert np.abs(scaled - pixels / 257).max() < 1
    assert scaled[0, :3, 0].tolist() == [0, 255, 100]
    assert summary.brightest_of_16_bits == scaled.max()


def test_12_bits_in_16_are_said_to_come_out_dark(tmp_path: Path):
    save(tmp_path, "1.png", png16(noise(8, 8, 3, high=4096)))
    lines = "\n".join(words.summary_lines(made(tmp_path, depth16="scale")))
    assert "the largest value is only 15 of 255" in lines


def test_transparent_16_bit_colour_obeys_both_options(tmp_path: Path):
    pixels = noise(8, 8, 4, high=65_536)
    pixels[0, 0] = 0
    save(tmp_path, "1.png", png16(pixels))
    made(tmp_path, depth16="scale", background="#102030")
    assert first(tmp_path)[0, 0].tolist() == [16, 32, 48]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_more_than_16_bits_are_never_scaled(mode: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.new(mode, (8, 8), 7).save(tmp_path / "in" / "1.tif")
    with pytest.raises(UserError, match="32 bits per channel"):
        made(tmp_path, depth16="scale")


# --- transparent, large


def test_a_background_shows_through_transparent_pixels(tmp_path: Path):
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 0], pixels[:4, :, 3], pixels[4, 0, 3] = 200, 255, 51
    save(tmp_path, "1.png", pixels)
    with pytest.raises(UserError, match="give the --background"):
        made(tmp_path)
    made(tmp_path, background="blue")
    image = first(tmp_path)
    assert image[0, 0].tolist() == [200, 0, 0]
    assert image[7, 0].tolist() == [0, 0, 255]
    assert image[4, 0].tolist() == [40, 0, 204]  # a fifth of the one, four of the other


def test_grey_stays_grey_on_a_grey_background_alone(tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.new("LA", (8, 8), (90, 0)).save(tmp_path / "in" / "1.png")
    assert made(tmp_path, "white", background="white").channels == 1
    assert first(tmp_path, "white").max() == first(tmp_path, "white").min() == 255
    assert made(tmp_path, "red", background="red").channels == 3


def test_max_pixels_allows_a_large_image_and_only_for_this_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    save(tmp_path, "1.png", noise(20, 20).astype(np.uint8))
    with pytest.raises(UserError, match=r"more than 200 pixels.*--max-pixels"):
        made(tmp_path)
    with pytest.raises(UserError, match=r"more than 399 pixels"):
        made(tmp_path, max_pixels=399)
    assert made(tmp_path, max_pixels=400).size == 20
    assert Image.MAX_IMAGE_PIXELS == 200


def test_images_larger_than_a_dataset_takes_need_a_size(tmp_path: Path):
    (tmp_path / "in").mkdir()
    Image.new("L", (4097, 4097), 30).save(tmp_path / "in" / "scan.png")
    with pytest.raises(UserError, match=r"in/scan\.png: is 4,097 pixels wide, more than 4,096; give a --size"):
        made(tmp_path)
    assert made(tmp_path, size=16).size == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "whitish"}, "background: 'whitish' is not a colour"),
        ({"background": "#ffff"}, "background: '#ffff' is itself transparent"),
        ({"near": -1}, "near: must be"),
        ({"near": float("nan")}, "near: must be"),
        ({"max_pixels": 0}, "max-pixels: must be at least 1"),
        ({"name": "x" * 101}, "name: must have 1 to 100 characters"),
        ({"name": ""}, "name: must have 1 to 100 characters"),
        ({"name": "\x1b[31mred"}, "has control characters"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], message: str, tmp_path: Path):
    save(tmp_path, "1.png", noise(8, 8).astype(np.uint8))
    with pytest.raises(UserError, match=message):
        made(tmp_path, **options)


# --- images that cannot be used


def damaged(tmp_path: Path, bad: int) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(16, 16, 3).astype(np.uint8)).save(file, "JPEG")
    for i in range(bad):
        save(tmp_path, f"bad{i:02d}.jpg", file.getvalue()[:300] if i % 2 else b"<html>not here</html>")
    for i in range(20):
        save(tmp_path, f"good{i:02d}.png", noise(16, 16, 3, seed=i).astype(np.uint8))


def test_all_unusable_images_are_named_at_once(tmp_path: Path):
    damaged(tmp_path, 4)
    with pytest.raises(UserError, match=r"4 of 24 images cannot be used \(--skip-bad") as error:
        made(tmp_path)
    assert all(f"bad0{i}.jpg" in str(error.value) for i in range(4))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_of_many_unusable_images_twenty_are_named(tmp_path: Path):
    damaged(tmp_path, 23)
    with pytest.raises(UserError, match=r"23 of 43 images") as error:
        made(tmp_path)
    assert str(error.value).count(".jpg") == 20
    assert sum(int(count) for count in re.findall(r"and (\d+) more", str(error.value))) == 3


def test_each_reason_says_how_many_images_have_it_before_their_names(tmp_path: Path):
    for i in range(30):
        save(tmp_path, f"clear{i:02d}.png", np.full((16, 16, 4), i, np.uint8))
    save(tmp_path, "deep.png", np.full((16, 16), 9, np.uint16))
    save(tmp_path, "good.png", noise(16, 16, 3).astype(np.uint8))
    with pytest.raises(UserError) as error:
        made(tmp_path)
    line = str(error.value)
    assert line.startswith("31 of 32 images cannot be used (--skip-bad prepares the rest): 30 x has transparent pixels")
    assert (
        line.index("--background") < line.index("clear00.png") < line.index("clear09.png and 20 more; 1 x has 16 bits")
    )
    assert line.endswith("deep.png")


def test_skip_bad_is_no_advice_where_no_image_can_be_used(tmp_path: Path):
    for i in range(2):
        save(tmp_path, f"clear{i}.png", np.full((16, 16, 4), i, np.uint8))
    with pytest.raises(UserError, match=r"2 of 2 images cannot be used \(no image can be used\)"):
        made(tmp_path)


def test_skip_bad_prepares_the_rest_and_lists_what_was_left_out(tmp_path: Path):
    damaged(tmp_path, 4)
    manifest = made(tmp_path, skip_bad=True)
    assert manifests.load_manifest(tmp_path / "out") == manifest
    assert manifest.splits["train"].count == 20
    assert [line.partition(":")[0] for line in manifest.summary.bad] == [f"in/bad0{i}.jpg" for i in range(4)]
    images, _, keys = open_dataset(tmp_path / "out").images("train")
    assert min(keys) == "00000004"  # their numbers in the source
    np.testing.assert_array_equal(images[keys.index("00000004")], noise(16, 16, 3).transpose(2, 0, 1))


def test_skip_bad_needs_an_image_that_can_be_used(tmp_path: Path):
    save(tmp_path, "1.png", b"none")
    save(tmp_path, "2.png", b"none")
    with pytest.raises(UserError, match="no image can be used"):
        made(tmp_path, skip_bad=True)


# --- what was understood


def test_prepare_says_what_it_understood(tmp_path: Path):
    for i in range(6):
        side = 24 if i % 2 else 16
        save(tmp_path, f"{'cat' if i < 4 else 'dog'}/{i}.png", noise(16, side, 3, seed=i).astype(np.uint8))
    save(tmp_path, "cat/again.png", noise(16, 16, 3).astype(np.uint8))
    lines = list(words.summary_lines(made(tmp_path, size=16, holdout=2)))
    assert lines[:2] == [
        "classes: cat 5, dog 2",
        "images: 4 of 16x16, 3 of 24x16; 3 cropped to their centre square, 0 resized to 16x16",
    ]
    assert lines[2].startswith("duplicates: 1 images equal an earlier one, 0 are near others")


def test_of_many_sizes_the_five_most_frequent_are_listed(tmp_path: Path):
    for i in range(12):
        side = 16 + max(0, i - 4)
        save(tmp_path, f"{i:02d}.png", noise(side, 16, 3, seed=i).astype(np.uint8))
    (line,) = [line for line in words.summary_lines(made(tmp_path, size=16)) if line.startswith("images: ")]
    sizes, _, changes = line.partition("; ")
    assert sizes == "images: 5 of 16x16, 1 of 16x17, 1 of 16x18, 1 of 16x19, 1 of 16x20, 3 of other sizes"
    assert changes == "7 cropped to their centre square, 0 resized to 16x16"


def test_a_folder_of_few_images_beside_large_classes_is_warned_of(tmp_path: Path):
    for i in range(220):
        save(tmp_path, f"emoji/{i:03d}.png", noise(8, 8, 1, seed=i).astype(np.uint8)[..., 0])
    save(tmp_path, "sheet/1.png", noise(8, 8, 1, seed=500).astype(np.uint8)[..., 0])
    lines = list(words.summary_lines(made(tmp_path, holdout=0, near=0)))
    assert [line.partition(". ")[0] for line in lines if line.startswith("WARNING")] == [
        "WARNING: hardly any training images of sheet 1"
    ]


def test_equal_images_lie_on_one_side_of_the_split(tmp_path: Path):
    for i in range(40):
        save(tmp_path, f"{i:02d}.png", noise(8, 8, seed=i // 2).astype(np.uint8))
    manifest = made(tmp_path, holdout=0.25)
    images = {split: open_dataset(tmp_path / "out").images(split)[0] for split in manifest.splits}
    sides = {split: {image.tobytes() for image in content} for split, content in images.items()}
    assert not sides["train"] & sides["holdout"]
    assert manifest.splits["holdout"].count == 10
    assert manifest.summary.equal == 20


def test_near_0_lets_near_images_be_split(tmp_path: Path):
    for i in range(40):
        base = noise(8, 8, seed=i // 2, high=240)
        save(tmp_path, f"{i:02d}.png", (base + 8 * (i % 2)).astype(np.uint8))
    near, equal = made(tmp_path, "near", holdout=10), made(tmp_path, "equal", holdout=10, near=0)
    assert (near.summary.near, equal.summary.near) == (20, 0)

    def pairs(out: str) -> set[int]:
        keys = {split: open_dataset(tmp_path / out).entries(split)[0] for split in ("train", "holdout")}
        return {int(key) // 2 for key in keys["train"]} & {int(key) // 2 for key in keys["holdout"]}

    assert not pairs("near")
    assert pairs("equal")


def test_images_that_differ_by_9_of_255_are_no_near_duplicates(tmp_path: Path):
    for i in range(40):
        base = noise(8, 8, seed=i // 2, high=240)
        save(tmp_path, f"{i:02d}.png", (base + 9 * (i % 2)).astype(np.uint8))
    assert made(tmp_path, holdout=10).summary.near == 0


def test_classes_that_run_short_are_named(tmp_path: Path):
    for i in range(6):
        save(tmp_path, f"{'cat' if i < 4 else 'dog'}/{i}.png", noise(8, 8, seed=i).astype(np.uint8))
    with pytest.raises(UserError, match="3 images requested, but class dog has 2"):
        made(tmp_path, per_class=3)


def test_a_dataset_is_named_after_its_folder(tmp_path: Path):
    save(tmp_path, "1.png", noise(8, 8).astype(np.uint8))
    assert made(tmp_path, "birds.v2").name == "birds.v2"
    assert made(tmp_path, "other", name="birds").name == "birds"


def test_a_classifier_that_learnt_nothing_is_not_used_unless_asked_for(tmp_path: Path):
    for i in range(120):
        save(tmp_path, f"{'ab'[i % 3 == 0]}/{i:03d}.png", noise(8, 8, seed=i).astype(np.uint8))
    manifest = made(tmp_path, classifier=None, holdout=30)
    assert manifest.classifier is not None
    assert not manifest.classifier.better_than_chance
    assert manifest.classifier.baseline == pytest.approx(2 / 3)
    assert any(line.startswith("WARNING: the classifier is no better") for line in words.summary_lines(manifest))
    with pytest.raises(UserError, match=r"no better than always naming.*--classifier"):
        names.check_scoring(Scoring(extractor="classifier"), manifest)
    recipe = load_recipe("tiny-edm").replace({"coreset.keep": 0.5, "coreset.features": "classifier"})
    with pytest.raises(UserError, match=r"coreset.features.*no better than always naming"):
        fit.check_fit(recipe, manifest)

    asked = made(tmp_path, "asked", classifier=True, holdout=30)
    names.check_scoring(Scoring(extractor="classifier"), asked)


def test_one_right_answer_does_not_make_a_classifier_usable(tmp_path: Path):
    for i in range(12):
        save(tmp_path, f"{'ab'[i % 2]}/{i:03d}.png", np.full((8, 8), 250 * (i % 2) + i // 2, dtype=np.uint8))
    manifest = made(tmp_path, classifier=None, near=0, holdout=1)
    assert manifest.classifier is not None
    assert (manifest.classifier.accuracy, manifest.classifier.baseline) == (1, 0)
    assert not manifest.classifier.better_than_chance


def test_a_classifier_that_works_is_used(scored_digits: Any):
    classifier = scored_digits.manifest.classifier
    assert classifier.better_than_chance
    assert classifier.usable
    assert classifier.baseline == pytest.approx(18 / 179)


# --- an edited manifest


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no size": (lambda m: m.update(size=0), "size: "),
    "negative size": (lambda m: m.update(size=-8), "size: "),
    "huge size": (lambda m: m.update(size=10**9), "size: "),
    "no train": (lambda m: m["splits"].pop("train"), "there is no split train"),
    "no reference": (lambda m: m.update(reference="reference"), "there is no split reference"),
    "long name": (lambda m: m.update(name="x" * 100_000), "name: "),
    "a name that steers the terminal": (lambda m: m.update(name="\x1b[31mred"), "name: "),
    "a class that steers the terminal": (lambda m: m["classes"].__setitem__(3, "\x1b[31mred"), "classes"),
    "no name": (lambda m: m.update(name=""), "name: "),
    "count": (lambda m: m["splits"]["train"].update(count=7), "count: is 7, but the shards hold"),
    "classes": (lambda m: m["splits"]["train"]["per_class"].pop(), "per_class: has 9 classes"),
    "per class": (lambda m: m["splits"]["train"]["per_class"].__setitem__(0, 7), "per_class: adds up to"),
    "no classes": (lambda m: m.update(classes=None), "per_class: has 10 classes"),
    "outside": (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.tar"), "file: "),
    "NaN": (lambda m: m["provenance"].update(holdout=float("nan")), "provenance"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_refused_in_one_line(edit: str, digits_dataset: Any, tmp_path: Path):
    change, message = EDITS[edit]
    content = json.loads((digits_dataset.folder / manifests.MANIFEST_FILE).read_text())
    change(content)
    (tmp_path / manifests.MANIFEST_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        manifests.load_manifest(tmp_path)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b"", b"7", b'{"size": ' + b"9" * 5000 + b"}"])
def test_what_is_no_manifest_is_refused_in_one_line(text: bytes, tmp_path: Path):
    (tmp_path / manifests.MANIFEST_FILE).write_bytes(text)
    with pytest.raises(UserError, match="prepare the dataset again") as error:
        manifests.load_manifest(tmp_path)
    assert len(str(error.value)) < 1000
    assert "\n" not in str(error.value)


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / manifests.MANIFEST_FILE)
    with pytest.raises(UserError, match=r"dataset\.json: cannot be read \(not a regular file\)"):
        manifests.load_manifest(tmp_path)
