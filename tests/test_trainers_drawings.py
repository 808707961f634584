"""Pen drawings: what becomes of them in preparation, how they are read, kept and rendered."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings_small import drawings, small_drawings, write_ndjson
from hypothesis import given
from hypothesis import strategies as st

from scrimp_trainers.common.errors import UserError
from scrimp_trainers.data import ink
from scrimp_trainers.data.dataset import open_dataset
from scrimp_trainers.data.drawing import UnusableDrawingError, along, strokes_of, to_item
from scrimp_trainers.data.manifest import load_manifest
from scrimp_trainers.data.modalities import strokes as modality
from scrimp_trainers.data.modalities.modality import Items, open_modality
from scrimp_trainers.data.options import Options
from scrimp_trainers.data.sources import open_source
from scrimp_trainers.data.sources.source import Layout
from scrimp_trainers.data.sources.svg import trace
from scrimp_trainers.ingest import prepare

# --- one drawing


def test_pictures_are_drawn_as_their_renderer_is_named():
    assert (ink.SIDE, ink.LINE_WIDTH, ink.MARGIN) == (modality.SIDE, modality.LINE_WIDTH, modality.MARGIN)


def test_an_item_begins_at_the_origin_with_radius_ten_and_even_steps():
    line = np.array([[5.0, 5], [5, 25], [35, 25]])  # the farthest point is its end
    item = to_item([np.array([[1.0, 1]]), line])
    assert item.dtype == np.float32
    assert np.linalg.norm(item[:, :2], axis=1).max() == pytest.approx(10)
    points = np.vstack([[0, 0], item[:, :2]])
    assert len(points) == int(50 / np.hypot(30, 20) / 0.05)
    assert item[:, 2].tolist() == [0] * (len(item) - 1) + [1]
    # Equal distances along the line; only the step around the corner is shorter as the crow flies.
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert np.sum(np.abs(steps - steps.max()) > 1e-5) <= 1


def test_each_stroke_has_at_least_two_points_and_ends_once():
    item = to_item([np.array([[0.0, 0], [100, 0]]), np.array([[50.0, 50], [50.1, 50]])])
    assert item[:, 2].sum() == 2
    assert item[-2:, 2].tolist() == [0, 1]
    np.testing.assert_allclose(item[-2:, :2], [[5, 5], [5.01, 5]], atol=1e-5)


@pytest.mark.parametrize(
    ("drawing", "reason"),
    [
        ([np.zeros((1, 2))], "has no line"),
        ([np.zeros((3, 2))], "has no line"),
        ([np.array([[0, 0], [1.0, 0]])] * 26, "more than 25 strokes"),
        ([np.array([[0, 0], [1.0, 0]] * 20)], "more than 299 points"),
        ([np.array([[0, 0], [np.inf, 0]])], "not finite"),
    ],
)
def test_a_drawing_that_is_left_out_says_why(drawing, reason):
    with pytest.raises(UnusableDrawingError, match=reason):
        to_item(drawing)


@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=2, max_size=12, unique=True))
def test_resampling_keeps_the_ends_and_stays_on_the_line(corners):
    line = np.array(corners, dtype=float)
    points = along(line, 17)
    np.testing.assert_allclose(points[[0, -1]], line[[0, -1]], atol=1e-9)
    starts, steps = line[:-1], np.diff(line, axis=0)
    share = (((points[:, None] - starts) * steps).sum(-1) / (steps**2).sum(-1)).clip(0, 1)
    assert np.linalg.norm(points[:, None] - starts - share[..., None] * steps, axis=-1).min(1).max() < 1e-9


def test_steps_with_pen_states_are_strokes():
    steps = np.array([[2, 3, 0], [1, 0, 1], [0, 5, 0], [1, 1, 1]])
    first, second = strokes_of(steps)
    assert first.tolist() == [[2, 3], [3, 3]]
    assert second.tolist() == [[3, 8], [4, 9]]


# --- readers


def items_of(source: Path, scratch: Path) -> list[np.ndarray]:
    source_read = open_source(str(source), scratch)
    return [to_item(source_read.load(i)) for i in range(source_read.count)]


def expected_items(count: int) -> list[np.ndarray]:
    return [to_item(strokes) for _, strokes in drawings(count)]


def assert_same(read: list[np.ndarray], expected: list[np.ndarray], atol: float = 0) -> None:
    assert len(read) == len(expected)
    for item, other in zip(read, expected, strict=True):
        np.testing.assert_allclose(item, other, atol=atol)


@pytest.mark.parametrize("times", [False, True], ids=["simplified", "raw"])
def test_quick_draw_is_read_with_its_words_whether_it_has_times_or_not(times, tmp_path):
    source = write_ndjson(tmp_path / "some.ndjson", 9, times=times)
    assert_same(items_of(source, tmp_path), expected_items(9))
    source_read = open_source(str(source), tmp_path)
    assert source_read.classes == ["circle", "zigzag"]
    assert source_read.labels is not None
    assert source_read.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert source_read.where(3).endswith("some.ndjson, drawing 3")


def test_quick_draw_is_read_gzipped_and_without_words(tmp_path):
    plain = write_ndjson(tmp_path / "some.ndjson", 4, words=False)
    packed = tmp_path / "packed" / "some.ndjson.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert_same(items_of(packed.parent, tmp_path), expected_items(4))
    assert open_source(str(packed), tmp_path).classes is None
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match="cut short or damaged"):
        open_source(str(packed), tmp_path)


def test_a_line_that_is_no_drawing_is_named(tmp_path):
    source = write_ndjson(tmp_path / "some.ndjson", 30)
    source.write_text(source.read_text() + '{"word": "circle", "drawing": [[1, 2]]}\n')
    with pytest.raises(UserError, match=r"some.ndjson, drawing 30: not a drawing of Quick, Draw!"):
        prepare(str(source), tmp_path / "out", Options(classifier=False))
    manifest = prepare(str(source), tmp_path / "out", Options(classifier=False, skip_bad=True))
    assert len(manifest.summary.bad) == 1


def as_steps(strokes: list[np.ndarray]) -> np.ndarray:
    points = np.concatenate(strokes)
    ends = np.concatenate([np.eye(1, len(stroke), len(stroke) - 1)[0] for stroke in strokes])
    return np.column_stack([np.diff(points, axis=0, prepend=0), ends]).astype(np.float32)


def write_flat(path: Path, **splits: list[np.ndarray]) -> None:
    arrays = {}
    for split, steps in splits.items():
        arrays[split] = np.concatenate(steps)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, steps)])
    np.savez(path, **arrays)


def write_objects(path: Path, **splits: list[np.ndarray]) -> None:
    """Write the form of sketch-rnn's own files."""
    arrays = {}
    for split, steps in splits.items():
        arrays[split] = np.empty(len(steps), dtype=object)
        arrays[split][:] = steps
    np.savez(path, **arrays)


@pytest.mark.parametrize("write", [write_flat, write_objects])
def test_npz_files_of_steps_are_read_with_their_splits(write, tmp_path):
    steps = [as_steps(strokes) for _, strokes in drawings(7)]
    write(tmp_path / "some.npz", train=steps[:4], valid=steps[4:6], test=steps[6:])
    assert_same(items_of(tmp_path / "some.npz", tmp_path), expected_items(7), atol=1e-3)
    source_read = open_source(str(tmp_path / "some.npz"), tmp_path)
    assert source_read.test is not None
    assert source_read.test.tolist() == [False] * 4 + [True] * 3
    assert source_read.where(5).endswith("some.npz, valid 1")


def test_labels_in_a_file_are_classes_and_so_are_several_files(tmp_path):
    steps = [as_steps(strokes) for _, strokes in drawings(4)]
    offsets = np.cumsum([0, *map(len, steps)])
    np.savez(tmp_path / "one.npz", train=np.concatenate(steps), train_offsets=offsets, train_labels=[7, 3, 7, 3])
    source_read = open_source(str(tmp_path / "one.npz"), tmp_path)
    assert source_read.classes == ["3", "7"]
    assert source_read.labels is not None
    assert source_read.labels.tolist() == [1, 0, 1, 0]

    folder = tmp_path / "several"
    folder.mkdir()
    write_objects(folder / "cat.npz", train=steps[:1])
    write_objects(folder / "ant.npz", train=steps[1:])
    source_read = open_source(str(folder), tmp_path)
    assert source_read.classes == ["ant", "cat"]
    assert source_read.labels is not None
    assert source_read.labels.tolist() == [0, 0, 0, 1]


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_objects(tmp_path / "bad.npz", train=[Harmful()])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"contains (posix|nt|os)\.system, which no drawing needs"):
        open_source(str(tmp_path / "bad.npz"), tmp_path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.zeros((5, 3)), "train_offsets": np.array([0, 9])}, "not positions in ascending order"),
        ({"train": np.zeros((5, 2)), "train_offsets": np.array([0, 5])}, r"\[n, 3\] is needed"),
        ({"train": np.zeros((5, 3))}, "without `offsets`"),
    ],
)
def test_arrays_that_are_no_drawings_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "bad.npz"), tmp_path)


def test_an_svg_path_is_sampled_along_its_arc():
    k = 4 / 3 * (np.sqrt(2) - 1)
    (line,) = trace(f"M100,0 c0,{100 * k} {100 * k - 100},100 -100,100")
    item = to_item([line])
    points = np.vstack([[0, 0], item[:, :2]])
    # The quarter of a circle around (0, 0) with the radius 100, which ends at a distance of 100 * sqrt(2).
    centred = points * 10 * np.sqrt(2) + [100, 0]
    np.testing.assert_allclose(np.linalg.norm(centred, axis=1), 100, rtol=1e-3)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-2)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("M1 2l3,4 5-1", "M1,2 L4,6 L9,5"),
        ("M1 2 4 6", "M1,2 L4,6"),
        ("m1,2h3v4H0V1", "M1,2 L4,2 L4,6 L0,6 L0,1"),
        ("M0 0C1 1 2 1 3 0S5-1 6 0", "M0 0C1 1 2 1 3 0C4-1 5-1 6 0"),
        ("M0 0L3 0S5-1 6 0", "M0 0L3 0C3 0 5-1 6 0"),
        ("M0 0Q1 1 2 0T4 0", "M0 0Q1 1 2 0Q3-1 4 0"),
        ("M0 0L1 0L1 1Z", "M0 0L1 0L1 1L0 0"),
        ("M.5.5L1e1-2.5E-1", "M0.5,0.5 L10,-0.25"),
    ],
)
def test_forms_of_a_path_that_mean_the_same_are_the_same(path, same):
    for line, other in zip(trace(path), trace(same), strict=True):
        np.testing.assert_allclose(line, other)


def test_a_path_with_two_moves_is_two_strokes():
    assert [line.tolist() for line in trace("M0 0L1 0M5 5L6 6")] == [[[0, 0], [1, 0]], [[5, 5], [6, 6]]]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("M0 0A1 1 0 0 1 2 2", "command A, which is not read"),
        ("M0 0C1 1 2", "3 numbers after C"),
        ("L1 1", "not with a move"),
    ],
)
def test_a_path_that_cannot_be_read_is_refused(path, message):
    with pytest.raises(UserError, match=message):
        trace(path)


def svg(*paths: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg">{"".join(f"<g><path d={p!r}/></g>" for p in paths)}</svg>'


def test_a_packed_folder_of_svg_files_is_read_a_drawing_a_file(tmp_path):
    folder = tmp_path / "kanji"
    folder.mkdir()
    (folder / "1.svg").write_text(svg("M0 0L10 0", "M0 5L10 5"))
    (folder / "2.svg").write_text(svg("M0 0L0 10"))
    with tarfile.open(tmp_path / "kanji.tar.xz", "w:xz") as archive:
        archive.add(folder, "kanji")
    first, second = items_of(tmp_path / "kanji.tar.xz", tmp_path)
    assert first[:, 2].sum() == 2
    assert second[-1].tolist() == [0, 10, 1]
    (folder / "3.svg").write_text('<!DOCTYPE a [<!ENTITY b "c">]><svg/>')
    with pytest.raises(UserError, match="defines entities"):
        items_of(folder, tmp_path)


def test_drawings_without_classes_may_have_their_numbers_of_strokes(tmp_path):
    folder = tmp_path / "kanji"
    folder.mkdir()
    (folder / "1.svg").write_text(svg("M0 0L10 0", "M0 5L10 5", "M3 3"))  # the last one is a point
    (folder / "2.svg").write_text(svg("M0 0L0 10"))
    (folder / "3.svg").write_text(svg(*(f"M0 {y}L10 {y}" for y in range(12))))
    (folder / "4.svg").write_text(svg("M0 0L0 9M3 0L3 9"))
    source = open_source(str(folder), tmp_path, Layout(labels="strokes"))
    assert source.classes == ["1 stroke", "2 strokes", "12 strokes"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 2, 1]
    with pytest.raises(UserError, match="--labels strokes is for pen drawings, but the source has images"):
        open_source("digits", tmp_path, Layout(labels="strokes"))


# --- datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("strokes")
    small_drawings(folder, holdout=16)
    return folder / "data"


def test_a_dataset_of_drawings_keeps_them_with_their_lengths(folder):
    dataset = open_dataset(folder)
    manifest = dataset.manifest
    assert (manifest.modality, manifest.channels) == ("strokes", 3)
    items, labels, keys = dataset.items("train")
    assert items.mask is not None
    assert labels is not None
    expected = expected_items(80)
    assert manifest.size == max(map(len, expected))
    for row, (label, key) in enumerate(zip(labels, keys, strict=True)):
        item = expected[int(key)]
        there = items.mask[row, 0]
        assert there.sum() == len(item)
        assert np.array_equal(items.values[row][:, there].numpy().T, item)
        assert label == int(key) % 2
    lengths = items.mask[:, 0].sum(1).tolist()
    assert manifest.lengths == np.bincount(lengths, minlength=manifest.size + 1).tolist()
    assert manifest.mean_length == pytest.approx(np.mean(lengths))
    assert (folder / "contact_sheet.png").stat().st_size > 1000


def test_equal_sources_give_equal_files_and_long_drawings_are_left_out(folder, tmp_path):
    again = small_drawings(tmp_path, holdout=16)
    assert again == load_manifest(folder)
    for file in folder.glob("*.*"):
        assert file.read_bytes() == (tmp_path / "data" / file.name).read_bytes()
    (tmp_path / "short").mkdir()
    short = small_drawings(tmp_path / "short", holdout=16, size=50)
    assert short.size < 50
    left_out = sum(len(item) + 1 > 50 for item in expected_items(80))
    assert short.summary.skipped == {"a drawing that has more than 50 points": left_out}


@pytest.mark.parametrize("options", [{"background": "white"}, {"depth16": "scale"}, {"max_pixels": 9}])
def test_options_of_images_are_refused(options, tmp_path):
    with pytest.raises(UserError, match=r"is for images, but the source has strokes"):
        small_drawings(tmp_path, **options)


def test_a_reference_set_of_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="the source has strokes, its reference set others"):
        small_drawings(tmp_path, reference="digits")


def test_damaged_lengths_are_refused(folder, tmp_path):
    content = json.loads((folder / "dataset.json").read_text())
    content["lengths"][5] += 1
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="lengths: are not those of the training items"):
        load_manifest(tmp_path)


def test_a_classifier_is_trained_on_pictures(tmp_path):
    manifest = small_drawings(tmp_path, count=120, classifier=None)
    assert manifest.classifier is not None
    assert manifest.classifier.accuracy > 0.8


# --- pictures


def some_items() -> Items:
    drawn = [to_item(strokes) for _, strokes in drawings(6)]
    return open_modality("strokes", size=120, channels=3).collate(drawn)


def distances(item: np.ndarray) -> np.ndarray:
    """Return the distance of each pixel of a picture to the nearest line of a drawing."""
    points = np.vstack([np.zeros((1, 3)), item]).astype(np.float64)
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    pixels = (points[:, :2] - (low + high) / 2) * (56 / (high - low).max()) + 32
    starts, ends = pixels[:-1], pixels[1:]
    starts, ends = starts[points[:-1, 2] == 0], ends[points[:-1, 2] == 0]
    y, x = np.mgrid[:64, :64] + 0.5
    nearest = np.full((64, 64), np.inf)
    for start, end in zip(starts, ends, strict=True):
        along_line = ((x - start[0]) * (end - start)[0] + (y - start[1]) * (end - start)[1]) / (
            (end - start) ** 2
        ).sum()
        share = along_line.clip(0, 1)
        nearest = np.minimum(
            nearest, np.hypot(x - start[0] - share * (end - start)[0], y - start[1] - share * (end - start)[1])
        )
    return nearest


def test_pictures_are_lines_of_two_pixels_with_smooth_edges():
    items = some_items()
    pictures = open_modality("strokes", size=120, channels=3).render(items)
    assert pictures.shape == (6, 1, 64, 64)
    assert pictures.dtype == torch.uint8
    assert items.mask is not None
    for picture, values, mask in zip(pictures, items.values, items.mask, strict=True):
        expected = 255 * (1 - (1.5 - distances(values[:, mask[0]].numpy().T)).clip(0, 1))
        assert np.abs(picture[0].numpy() - expected).max() < 1


def test_what_is_padding_or_how_large_and_where_does_not_change_a_picture():
    items = some_items()
    assert items.mask is not None
    kind = open_modality("strokes", size=120, channels=3)
    junk = Items(torch.where(items.mask, items.values, torch.tensor(9.0)), items.mask)
    assert torch.equal(kind.render(items), kind.render(junk))
    larger = Items(items.values * torch.tensor([3.0, 3.0, 1.0])[:, None], items.mask)
    assert (kind.render(items).int() - kind.render(larger).int()).abs().max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 0.0])
def test_samples_that_are_no_drawings_are_drawn_all_the_same(value):
    items = Items(torch.full((2, 3, 10), value))
    assert open_modality("strokes", size=10, channels=3).render(items).shape == (2, 1, 64, 64)


def test_statistics_are_what_a_ruler_finds():
    square = [[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [5, 5, 0], [6, 6, 1]]
    line = [[1, 0, 0], [2, 0, 1]]
    kind = modality.StrokeModality(8)
    items = kind.collate([np.array(square, np.float32), np.array(line, np.float32)])
    statistics = kind.statistics(items)
    # The square turns three times by a quarter; the way to its second stroke is not drawn.
    np.testing.assert_allclose(statistics, [[6, 2, np.pi / 2], [2, 1, 0]], rtol=1e-6)


def test_an_svg_has_the_strokes_of_its_drawing():
    text = modality.StrokeModality(8).svg(np.array([[1, 0, 0], [2, 0, 1], [2, 2, 0], [0, 2, 1]], np.float32))
    assert 'd="M0,0 L1,0 2,0 M2,2 L0,2"' in text
    lines = trace(text.split(' d="')[1].split('"')[0])
    assert [len(line) for line in lines] == [3, 2]


def test_a_damaged_item_is_refused():
    kind = modality.StrokeModality(4)
    for data in (b"", b"123", b"\0" * 60, np.full((2, 3), np.nan, "<f4").tobytes()):
        with pytest.raises(UserError, match="prepare the dataset again"):
            kind.decode(data, "here")


# --- real files


@pytest.mark.parametrize(
    ("file", "size", "classes"),
    [
        ("quickdraw25/quickdraw_345x25_simplified.ndjson.gz", None, 344),
        ("kanjivg/kanjivg_base_svg.tar.xz", 158, None),
        ("sketch_rnn/kanji.rdp200.flat.npz", None, None),
        ("vmnist/vmnist.npz", None, 10),
    ],
)
def test_a_real_file_is_read(file, size, classes, real_data, tmp_path):
    if not (real_data / file).is_file():
        pytest.skip(f"{file} is not here")
    source = open_source(str(real_data / file), tmp_path)
    assert source.modality == "strokes"
    assert len(source.classes or []) == (classes or 0)
    chosen = np.random.default_rng(0).permutation(source.count)[:300]
    usable = 0
    for number in chosen:
        try:
            item = to_item(source.load(int(number)))
        except UnusableDrawingError:
            continue
        usable += 1
        assert np.linalg.norm(item[:, :2], axis=1).max() == pytest.approx(10, rel=1e-5)
        assert size is None or len(item) <= size
    assert usable > 250


def test_of_drawings_only_equal_ones_count_as_near_unless_asked_otherwise(tmp_path):
    """Pictures of lines are mostly background: different drawings differ little on average."""
    (tmp_path / "by default").mkdir()
    (tmp_path / "asked").mkdir()
    assert small_drawings(tmp_path / "by default", near=None).summary.near_limit == 0
    assert small_drawings(tmp_path / "asked", near=3.0).summary.near_limit == 3
