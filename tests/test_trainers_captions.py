"""Images with captions beside them, from any form, kept in shards."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_trainers_prepare import contents, made, noise, save

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.loading import batches
from scrimp_trainers.data.streaming import stream
from scrimp_trainers.fit import check_fit
from scrimp_trainers.recipe.recipe import load

COUNT = 12


def write_images(folder: Path) -> list[str]:
    """Write images that are all different, and return a caption for each."""
    for number in range(COUNT):
        save(folder / f"{number:02d}.png", noise(8, 8, 3, seed=number))
    return [f"a photo of thing {number}" for number in range(COUNT)]


def write_texts(folder: Path, captions: list[str]) -> None:
    for number, caption in enumerate(captions):
        (folder / f"{number:02d}.txt").write_text(caption)


def write_table(path: Path, captions: list[str], column: str) -> None:
    lines = [json.dumps({"file_name": f"{number:02d}.png", column: text}) for number, text in enumerate(captions)]
    path.write_text("\n".join(lines) + "\n")


def caption_of_pixels(folder: Path) -> dict[bytes, str]:
    dataset = open_dataset(folder)
    pairs: dict[bytes, str] = {}
    for split in dataset.manifest.splits:
        images, _, _ = dataset.images(split)
        pairs |= {image.tobytes(): text for image, text in zip(images, dataset.captions(split), strict=True)}
    return pairs


def expected(captions: list[str]) -> dict[bytes, str]:
    return {noise(8, 8, 3, seed=n).transpose(2, 0, 1).tobytes(): text for n, text in enumerate(captions)}


@pytest.mark.parametrize("form", ["txt", "metadata text", "captions caption", "csv", "webdataset", "tar"])
def test_each_image_keeps_its_own_caption_whatever_form_they_come_in(tmp_path: Path, form: str):
    source = tmp_path / "source"
    captions = write_images(source)
    if form in ("txt", "tar", "webdataset"):
        write_texts(source, captions)
    if form == "metadata text":
        write_table(source / "metadata.jsonl", captions, "text")
    if form == "captions caption":
        write_table(source / "captions.jsonl", captions, "caption")
    if form == "csv":
        rows = [f'{number:02d}.png,"{text}"' for number, text in enumerate(captions)]
        (source / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    if form in ("tar", "webdataset"):
        packed = tmp_path / "packed"
        packed.mkdir()
        with tarfile.open(packed / "00000.tar", "w") as tar:
            for file in sorted(source.iterdir()):
                tar.add(file, file.name)
        source = packed if form == "webdataset" else packed / "00000.tar"

    manifest = made(tmp_path / "data", str(source))
    assert manifest.modality == "captioned"
    assert manifest.kinds == ("captioned", "images")
    assert caption_of_pixels(tmp_path / "data") == expected(captions)
    assert manifest.summary.skipped == {}
    note = next(note for note in manifest.summary.notes if note.startswith("captions from "))
    assert note.endswith(": 12 captions, 12 different, of 5 to 5 words")


def test_a_prepared_dataset_is_read_again_with_its_captions(tmp_path: Path):
    captions = write_images(tmp_path / "source")
    write_texts(tmp_path / "source", captions)
    made(tmp_path / "data", str(tmp_path / "source"), holdout=0)
    made(tmp_path / "again", str(tmp_path / "data"))
    assert caption_of_pixels(tmp_path / "again") == expected(captions)


def test_an_image_without_caption_is_refused_or_left_out(tmp_path: Path):
    captions = write_images(tmp_path / "source")
    write_texts(tmp_path / "source", captions)
    (tmp_path / "source" / "03.txt").unlink()
    (tmp_path / "source" / "05.txt").write_text("  \n")
    with pytest.raises(UserError, match=r"2 of 12 images cannot be used .*2 x has no caption.*03.png, .*05.png"):
        made(tmp_path / "data", str(tmp_path / "source"))

    made(tmp_path / "rest", str(tmp_path / "source"), skip_bad=True)
    left = {key: text for key, text in expected(captions).items() if text not in (captions[3], captions[5])}
    assert caption_of_pixels(tmp_path / "rest") == left

    plain = made(tmp_path / "plain", str(tmp_path / "source"), captions="none")
    assert plain.modality == "images"
    with pytest.raises(UserError, match="the train images of dataset plain have no captions"):
        open_dataset(tmp_path / "plain").captions("train")


def test_an_image_with_two_captions_is_refused(tmp_path: Path):
    captions = write_images(tmp_path / "source")
    write_table(tmp_path / "source" / "captions.jsonl", captions, "text")
    write_table(tmp_path / "source" / "metadata.jsonl", captions[::-1], "text")
    with pytest.raises(UserError, match="has two captions"):
        made(tmp_path / "data", str(tmp_path / "source"))


def test_a_dataset_without_captions_stays_what_it_was(tmp_path: Path):
    """Boxes of a detector are no captions, and what names no captions says nothing of them."""
    write_images(tmp_path / "source")
    manifest = made(tmp_path / "data", str(tmp_path / "source"))
    assert manifest.modality == "images"
    assert "captions" not in manifest.provenance

    for number in range(COUNT):
        (tmp_path / "source" / f"{number:02d}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    boxes = made(tmp_path / "boxes", str(tmp_path / "source"), name="data")
    assert boxes.content_hash == manifest.content_hash
    assert boxes.splits == manifest.splits
    assert boxes.summary.skipped == {"not an image (.txt)": COUNT}


def test_digits_have_the_hashes_that_they_had_before_there_were_captions(tmp_path: Path):
    manifest = made(tmp_path / "data")
    assert manifest.content_hash == "285a7c39bc57f2a471f7fd98aa6fc943ba6c010394fe31d42f70e4804833d32a"
    shards = [shard.sha256[:8] for split in manifest.splits.values() for shard in split.shards]
    assert shards == ["30845244", "3154b9bb", "90171322"]


def test_captions_are_part_of_the_content(tmp_path: Path):
    captions = write_images(tmp_path / "source")
    write_texts(tmp_path / "source", captions)
    one = made(tmp_path / "one", str(tmp_path / "source"))
    same = made(tmp_path / "same", str(tmp_path / "source"), name="one")
    assert contents(tmp_path / "one") == contents(tmp_path / "same")
    (tmp_path / "source" / "00.txt").write_text("another caption")
    assert made(tmp_path / "two", str(tmp_path / "source")).content_hash != one.content_hash
    assert same == one


def test_captions_go_with_classes_and_splits(tmp_path: Path):
    for split, seed in (("train", 0), ("test", 100)):
        for word in ("cat", "dog"):
            for number in range(6):
                file = tmp_path / "source" / split / word / f"{number}.png"
                save(file, noise(8, 8, seed=seed + number + 10 * (word == "dog")))
                file.with_suffix(".txt").write_text(f"a {split} photo of a {word}")
    made(tmp_path / "data", str(tmp_path / "source"))
    dataset = open_dataset(tmp_path / "data")
    for split, name in (("train", "train"), ("holdout", "test")):
        _, labels = dataset.entries(split)  # type: ignore[arg-type]
        assert labels is not None
        words = [["cat", "dog"][label] for label in labels]
        assert dataset.captions(split) == [f"a {name} photo of a {word}" for word in words]  # type: ignore[arg-type]


def test_recipes_for_images_train_on_captioned_images(tmp_path: Path):
    write_texts(tmp_path / "source", write_images(tmp_path / "source"))
    made(tmp_path / "data", str(tmp_path / "source"), holdout=0)
    dataset = open_dataset(tmp_path / "data")
    check_fit(load("tiny-edm"), dataset.manifest)
    resident = next(batches(dataset, batch_size=COUNT, seed=0, device="cpu"))
    import torch

    streamed = next(stream(dataset, 4, 0, torch.device("cpu"), False, 0, 1, 0, None, 0))
    assert resident.values.shape == (COUNT, 3, 8, 8)
    images, _, _ = dataset.images("train")
    np.testing.assert_array_equal(streamed.values.numpy(), images[streamed.index.numpy()])


def test_the_contact_sheet_shows_each_image_over_its_caption(tmp_path: Path):
    write_texts(tmp_path / "source", write_images(tmp_path / "source"))
    made(tmp_path / "data", str(tmp_path / "source"), holdout=0)
    sheet = np.asarray(Image.open(io.BytesIO((tmp_path / "data" / "contact_sheet.png").read_bytes())))
    images, _, _ = open_dataset(tmp_path / "data").images("train")
    np.testing.assert_array_equal(sheet[6:166:20, 6:166:20], images[0].transpose(1, 2, 0))
    under = sheet[168:188, 6:166]
    assert (under < 100).any()
    assert (under == 255).mean() > 0.7
