"""Winners side by side: what is compared, what is not and why, and that it fits the terminal."""

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_up_sweep import make_space, write_sweep

import scrimp
from scrimp_platform import store
from scrimp_platform.cli import compare_view, main, terminal
from scrimp_platform.report import leaderboard
from scrimp_platform.report.compare import Comparison, compare
from scrimp_platform.search import records
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError


def sweep(path: Path, seed: int, **changes: Any) -> SweepFolder:
    space = make_space(budget={"trials": 5, "leaders": 2, "repeats": 3}, **changes)
    return write_sweep(path, space, seed=seed)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[SweepFolder]:
    """Two sweeps on the same dataset, scored alike."""
    runs = tmp_path_factory.mktemp("runs")
    return [sweep(runs / "first", 5), sweep(runs / "second", 8, override={"optimizer.kind": "adamw"})]


def test_winners_are_those_of_the_leaderboards_best_first(two):
    (group,) = compare(two).groups
    assert sorted(winner.sweep for winner in group.winners) == ["first", "second"]
    scores = [winner.scores["fd_classifier"] for winner in group.winners]
    assert scores == sorted(scores)
    for winner in group.winners:
        folder = SweepFolder(winner.folder)
        space = records.space_of(folder)
        rows = leaderboard.rank(records.read_records(folder).trials, space)
        assert winner.trial == rows[0].number
        assert winner.result["fd_classifier"] == leaderboard.score_text(rows[0], "fd_classifier")


def test_settings_are_those_that_were_searched_or_differ(two):
    (group,) = compare(two).groups
    assert {"optimizer.lr", "network.channels", "network.dropout", "ema.halflife_kimg"} <= set(group.settings)
    assert sorted(group.settings["optimizer.kind"]) == ["adam", "adamw"]
    assert "training.batch_size" not in group.settings
    assert "trials" not in group.settings


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"dataset": {"name": "glyphs", "content_hash": "e" * 64}},
            "dataset glyphs (content eeeeeeeeeeee), not digits",
        ),
        ({"objectives": {"train_flops": "minimize"}}, "objective minimize train_flops, not minimize fd_classifier"),
    ],
)
def test_scores_that_were_not_measured_alike_stand_apart_with_the_reason(two, tmp_path, record, reason):
    other = sweep(tmp_path / "other", 5)
    description = store.read_json(other.description)
    for name, value in record.items():
        if name == "dataset":
            description["dataset"] |= value
        else:
            description["space"][name] = value
    store.write_json(other.description, description)
    comparison = compare([*two, other])
    assert [[winner.sweep for winner in group.winners] for group in comparison.groups][1] == ["other"]
    assert comparison.groups[0].differs == []
    assert any(reason in line for line in comparison.groups[1].differs)


def test_other_samples_and_weights_stand_apart(two, tmp_path, monkeypatch):
    import made_up_sweep

    plain = made_up_sweep.curve

    def curve(*arguments: Any) -> Any:
        for row in plain(*arguments):
            if row.rung is not None:
                row.scores.update(samples=500.0, extractor="classifier", weights="0123456789abcdef")
            yield row

    monkeypatch.setattr(made_up_sweep, "curve", curve)
    comparison = compare([two[0], sweep(tmp_path / "other", 5)])
    assert comparison.groups[1].differs == ["samples 500, not 1,000", "weights 0123456789abcdef, not none"]


def test_a_sweep_without_a_winner_is_named(two, tmp_path):
    begun = write_sweep(tmp_path / "begun", make_space(), most=1)
    comparison = compare([two[0], begun])
    assert [winner.sweep for winner in comparison.without] == ["begun"]
    assert "No trial has been trained to the end" in comparison.without[0].verdict


def printed(
    comparison: Comparison, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(terminal.console, "width", width)
    compare_view.show(comparison)
    return capsys.readouterr().out


def test_the_table_fits_80_columns_with_every_interval_whole(two, monkeypatch, capsys):
    comparison = compare(two)
    said = printed(comparison, 80, monkeypatch, capsys)
    assert max(map(len, said.splitlines())) <= 80
    for winner in comparison.groups[0].winners:
        assert winner.result["fd_classifier"] in said
        assert winner.sweep in said


def test_many_sweeps_are_printed_in_several_tables(two, monkeypatch, capsys):
    comparison = compare(two)
    comparison.groups[0].winners.extend(comparison.groups[0].winners * 2)
    said = printed(comparison, 80, monkeypatch, capsys)
    assert max(map(len, said.splitlines())) <= 80
    assert said.count("fd_classifier ") >= 2
    assert len(re.findall(r"\bfirst\b", said)) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first"], "name at least two sweeps"),
        (["first", "first"], "a sweep is named twice"),
        (["first", "nowhere"], "nowhere: not the folder of a sweep"),
    ],
)
def test_a_mistake_is_one_line(two, names, message):
    with pytest.raises(UserError, match=message) as error:
        compare([SweepFolder(two[0].path.parent / name) for name in names])
    assert "\n" not in str(error.value)


def test_the_command_and_the_library_say_the_same(two):
    paths = [str(folder.path) for folder in two]
    said = CliRunner().invoke(main.scrimp, ["compare", *paths], catch_exceptions=False)
    assert said.exit_code == 0
    (group,) = scrimp.compare(*paths).groups
    assert [winner.trial for winner in group.winners] == [winner.trial for winner in compare(two).groups[0].winners]
