"""`scrimp inspect`: what it shows of datasets and sources, on the terminal, as a page and as a call."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import source_forms
from click.testing import CliRunner
from drawings_small import small_drawings
from made_up_sweep import make_space, write_sweep
from PIL import Image

import scrimp
from scrimp_platform import inspection, store
from scrimp_platform.cli import main, terminal
from scrimp_platform.search import records
from scrimp_trainers.common.errors import UserError


@pytest.fixture(autouse=True)
def no_hours(monkeypatch):
    """Leave out the hours, which take seconds to reckon and have tests of their own."""
    monkeypatch.setattr(inspection, "_at_hand", lambda machine: None)


@pytest.fixture
def at_80_columns(monkeypatch):
    monkeypatch.setattr(terminal.console, "_width", 80)


@pytest.fixture
def two_classes(tmp_path) -> Path:
    """A folder of 30 black images of one class and 10 with red 51 and blue 255 of another."""
    random = np.random.default_rng(0)
    for name, count, colour in (("<b>cat", 30, (0, 0, 0)), ("dog", 10, (51, 0, 255))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((12, 12, 3), colour, dtype=np.uint8)
            pixels[:, :, 1] = random.integers(0, 256, (12, 12))
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def run(*arguments: str):
    return CliRunner().invoke(main.scrimp, ["inspect", *arguments], catch_exceptions=False)


def test_of_a_source_nothing_is_written(two_classes, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    inspected = scrimp.inspect(two_classes, storage=tmp_path / "runs")
    assert sorted(tmp_path.rglob("*")) == before
    assert not inspected.prepared
    assert inspected.manifest.classes == ["<b>cat", "dog"]
    assert inspected.nearness.scale is None
    assert "scrimp prepare" in inspected.nearness.command
    assert inspected.advice.commands[-1].endswith("--data data/photos --dry-run")


def test_channel_statistics_are_those_of_the_training_images(two_classes, tmp_path):
    dataset = scrimp.prepare(two_classes, tmp_path / "data", classifier=False)
    inspected = scrimp.inspect(dataset)
    images, labels, _ = dataset.images("train")
    assert labels is not None
    for channel, values in zip(inspected.channels, images.swapaxes(0, 1) / 255, strict=True):
        assert channel.mean == pytest.approx(values.mean())
        assert channel.deviation == pytest.approx(values.std())
    red, _, blue = inspected.channels
    assert blue.mean == pytest.approx((labels == 1).mean())
    assert red.mean == pytest.approx((labels == 1).mean() / 5)


def test_each_class_has_a_contact_sheet(two_classes):
    inspected = scrimp.inspect(two_classes)
    assert [sheet.title for sheet in inspected.sheets] == ["<b>cat", "dog"]
    cats, dogs = (np.asarray(sheet.image) for sheet in inspected.sheets)
    black_then_blue = cats[:100, 20:160, 2].mean(), dogs[20:100, 20:160, 2].mean()
    assert black_then_blue[0] < 50
    assert black_then_blue[1] == 255


def test_the_distance_of_held_out_images_is_that_of_every_score(scored_digits, tmp_path):
    from scrimp_trainers.metrics.score import Scorer
    from scrimp_trainers.recipe.scoring import Scoring

    folder = tmp_path / "digits"
    shutil.copytree(scored_digits.folder, folder, ignore=shutil.ignore_patterns("cache"))
    inspected = scrimp.inspect(folder)
    scale = inspected.nearness.scale
    assert scale is not None
    measured = Scorer(scored_digits, Scoring(extractor="classifier"), "cpu").real_distances
    assert {f"fd_classifier_{which}" for which in ("real", "holdout")} == measured.keys()
    assert [mark.value for mark in scale.real] == pytest.approx(
        [measured["fd_classifier_real"], measured["fd_classifier_holdout"]]
    )
    assert inspected.cached["features of classifier"] == "holdout, train"


def test_without_an_extractor_it_says_what_makes_the_distance_known(digits_dataset, tmp_path):
    nearness = scrimp.inspect(digits_dataset).nearness
    assert nearness.scale is None
    assert "no feature extractor" in nearness.unknown
    assert nearness.command.startswith("scrimp evaluate MODEL ")

    few = scrimp.prepare("digits", tmp_path / "few", first=30, holdout=2, classifier=False)
    nearness = scrimp.inspect(few).nearness
    assert "20 are needed" in nearness.unknown
    assert nearness.command.endswith("--holdout 0.1")


def test_earlier_sweeps_of_the_dataset_are_named(digits_dataset, tmp_path):
    folder = write_sweep(tmp_path / "runs" / "first", make_space(budget={"trials": 2}))
    inspected = scrimp.inspect(digits_dataset, storage=tmp_path / "runs")
    assert all(line.what != "warm start" for line in inspected.advice.lines)  # it is a sweep of another dataset

    record = records.sweep_description(folder)
    record["dataset"]["content_hash"] = digits_dataset.manifest.content_hash
    store.write_json(folder.description, record)
    inspected = scrimp.inspect(digits_dataset, storage=tmp_path / "runs")
    assert [line.value for line in inspected.advice.lines if line.what == "warm start"] == ["first"]
    assert f"--warm-start {folder.path}" in inspected.advice.commands[-1]


def test_the_terminal_wraps_between_words_and_escapes_names(two_classes, at_80_columns):
    said = run(str(two_classes))
    assert said.exit_code == 0
    assert "<b>cat" in said.output
    assert "Advice" in said.output
    assert "space    scrimp-small" in said.output
    wrapped = [line for line in said.output.splitlines() if "scrimp " not in line and str(two_classes) not in line]
    assert max(map(len, wrapped)) <= 80


def test_the_page_is_one_file_and_escapes_names(two_classes, tmp_path):
    said = run(str(two_classes), "--out", str(tmp_path / "page.html"))
    assert said.exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "<b>cat" not in page
    assert "&lt;b&gt;cat" in page
    assert page.count('<img src="data:image/') == 2
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert not list(tmp_path.glob("page.html?*"))


def test_drawings_are_shown_as_pictures(tmp_path):
    small_drawings(tmp_path)
    inspected = scrimp.inspect(tmp_path / "data")
    assert [channel.name for channel in inspected.channels] == ["grey"]
    assert inspected.channels[0].mean > 0.5  # ink on white
    assert inspected.advice.lines[0].value.startswith("chirodiff")


def test_a_source_of_edms_tool_is_no_dataset(tmp_path):
    folder = source_forms.make_folder(tmp_path / "edm", source_forms.edm())
    assert (folder / "dataset.json").exists()
    assert not scrimp.inspect(folder).prepared


MISTAKES = [
    (["nothing-here"], "nothing-here"),
    (["{empty}"], "no images"),
    (["{digits}", "--size", "8"], "is a prepared dataset"),
    (["{digits}", "--on", "many"], "--on many"),
    (["{digits}", "--out", "{empty}/none/page.html"], "its folder does not exist"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_and_status_2(arguments, message, digits_dataset, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    filled = [text.format(empty=tmp_path / "empty", digits=digits_dataset.folder) for text in arguments]
    with pytest.raises(SystemExit) as left:
        main.main(["inspect", *filled])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_a_damaged_dataset_is_refused(digits_dataset, tmp_path, content):
    shutil.copytree(digits_dataset.folder, tmp_path / "digits")
    (tmp_path / "digits" / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=r"dataset\.json"):
        scrimp.inspect(tmp_path / "digits")
