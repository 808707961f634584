import json
import math
from pathlib import Path

import pytest
from made_up_rows import TICK, make_row

from scrimp_trainers.common import checksums, metrics_log
from scrimp_trainers.common.errors import DamagedRecord
from scrimp_trainers.common.metrics_log import MetricsRow

STORED = Path(__file__).with_name("stored_metrics.jsonl")
"""A row between rungs and one at a rung, written before rows were records."""


def test_stored_rows_are_written_back_byte_for_byte(tmp_path):
    rows, damage = metrics_log.scan_rows(STORED)
    assert not damage
    assert [row.rung for row in rows] == [None, 4.0]
    path = tmp_path / "metrics.jsonl"
    metrics_log.write_rows(path, rows)
    assert path.read_bytes() == STORED.read_bytes()
    path.unlink()
    for row in rows:
        metrics_log.append_row(path, row)
    assert path.read_bytes() == STORED.read_bytes()


def test_a_row_gives_every_number_of_the_file_by_its_name():
    tick, rung = metrics_log.read_rows(STORED)
    entries = json.loads(STORED.read_text().splitlines()[1])
    numbers = {name: value for name, value in entries.items() if isinstance(value, int | float)}
    assert len(numbers) > 25
    assert {name: rung.value(name) for name in numbers} == numbers
    assert (rung.extractor, tick.extractor) == ("classifier", "")
    assert all(math.isnan(row.value(name)) for row in (tick, rung) for name in ("fid", "extractor", "scores", "value"))
    assert math.isnan(tick.value("rung"))


def test_an_entry_that_a_later_version_adds_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    later = {"kimg": 1.0, "gradient": {"norm": 0.5}, "scores": [1, 2], **TICK, "energy": 3}
    path.write_text(json.dumps(checksums.seal(later)) + "\n")
    (row,) = metrics_log.read_rows(path)
    assert row.to_entries() == later
    assert row.value("energy") == 3


def test_a_row_from_before_the_microbatch_was_kept_is_read():
    earlier = {name: value for name, value in TICK.items() if name != "microbatch"}
    row = MetricsRow.from_entries(earlier)
    assert row.microbatch is None
    assert list(row.to_entries().items()) == list(earlier.items())


@pytest.mark.parametrize("name", [name for name in TICK if name != "microbatch"])
def test_a_row_without_what_every_row_has_is_damaged(tmp_path, name):
    entries = {other: value for other, value in TICK.items() if other != name}
    with pytest.raises(DamagedRecord, match=f"not a row of metrics .*'{name}'"):
        MetricsRow.from_entries(entries)
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(checksums.seal(entries)) + "\n")
    assert metrics_log.scan_rows(path) == ([], f"{path}: damaged in line 1")


def test_lines_are_read_back_without_one_that_a_kill_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert metrics_log.read_rows(path) == []
    rows = [make_row(kimg=1.0), make_row(kimg=2.0, rung=2.0, fid=float("inf"))]
    for row in rows:
        metrics_log.append_row(path, row)
    with path.open("a") as file:
        file.write('{"kimg": 3')
    assert metrics_log.read_rows(path) == rows
    metrics_log.write_rows(path, metrics_log.read_rows(path)[:1])
    assert metrics_log.read_rows(path) == rows[:1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_line_is_named_and_never_read_and_a_torn_last_one_is_neither(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first, second, third = (make_row(kimg=kimg, fid=20.5) for kimg in (1.0, 2.0, 3.0))
    metrics_log.write_rows(path, [first, second, third])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"20.5", b"10.5", 1))
    assert metrics_log.scan_rows(path) == ([second, third], f"{path}: damaged in line 1")
    path.write_bytes(whole.replace(b"\n", b"\x0c", 1))
    assert metrics_log.scan_rows(path) == ([third], f"{path}: damaged in line 1")
    path.write_bytes(b'{"kimg": 1.0}\n' + whole[:-1])
    assert metrics_log.scan_rows(path) == ([first, second], f"{path}: damaged in line 1")
