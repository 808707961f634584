"""A sweep that is resumed with other code or packages says so and keeps what trained what."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_up_sweep import make_space, train_all, write_sweep

from scrimp_platform import store, sweep, sweep_record
from scrimp_platform.cluster import Node, place
from scrimp_platform.plan import Plan, SweepOptions
from scrimp_platform.report import page
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.search.warm_start import WarmStart
from scrimp_platform.store import SweepFolder
from scrimp_platform.tracking.mirror_thread import MirrorThread
from scrimp_trainers.data import manifest

SPACE = make_space(budget={"trials": 3, "rungs_kimg": [1], "repeats": 1})
OLD: dict[str, Any] = {"versions": {"python": "3.11.9", "torch": "2.8.0"}, "code": "01d" * 20}
NEW: dict[str, Any] = {"versions": {"python": "3.11.9", "torch": "2.9.1"}, "code": "4e3" * 20}


@pytest.fixture
def software(monkeypatch):
    """What the sweep runs with: the old software until the test changes it."""
    current = dict(OLD)
    monkeypatch.setattr(sweep_record, "_software", lambda: dict(current))
    return current


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    """A sweep of which one repeat has ended and one was cut off, with the old software."""
    folder = write_sweep(tmp_path / "sweep", SPACE, most=2)
    store.write_json(folder.description, store.read_json(folder.description) | OLD)
    return folder


def plan_of(folder: SweepFolder) -> Plan:
    dataset = folder.path.parent / "datasets" / "digits"
    storage = store.Storage(folder.path.parent)
    return Plan(
        SweepOptions(seed=5),
        SPACE,
        SPACE.base(),
        storage,
        folder,
        dataset,
        manifest.load_manifest(dataset),
        resumed=True,
        warm_start=WarmStart(),
    )


def resume(folder: SweepFolder) -> list[dict[str, Any]]:
    """Write sweep.json as a driver does when it starts, and return what it says of earlier software."""
    description = sweep_record.sweep_record(plan_of(folder))
    store.write_json(folder.description, description)
    return description["earlier"]


def test_sweep_json_keeps_what_trained_what(folder, software):
    assert resume(folder) == []
    software |= NEW
    first = OLD | {"repeats": ["0.0"]}
    assert resume(folder) == [first]
    assert resume(folder) == [first]
    train_all(Ledger(folder, SPACE, 5, 1, lambda decision: None))
    software |= OLD
    assert resume(folder) == [first, NEW | {"repeats": ["1.0", "2.0"]}]
    origin = page._origin(store.read_json(folder.description))
    expected = "0.0 with torch 2.8.0, code 01d01d01d01d; 1.0, 2.0 with torch 2.9.1, code 4e34e34e34e3"
    assert origin["Repeats that ended with other code or packages"] == expected


@pytest.mark.parametrize("changed", [True, False])
def test_a_resumed_sweep_names_what_has_changed(folder, software, changed, monkeypatch, capsys):
    resume(folder)
    if changed:
        software |= NEW
    monkeypatch.setattr(sweep, "search_and_race", lambda *_: "complete")
    for name in ("save_outcome", "conclude"):
        monkeypatch.setattr(sweep, name, lambda *_: None)
    mirror = cast(MirrorThread, SimpleNamespace(start=lambda: None, stop=lambda **_: None))
    sweep.carry_out(plan_of(folder), place((Node("here", 2, 0),), None), mirror)
    said = " ".join(capsys.readouterr().out.split())
    line = "changed since the last run: code 4e34e34e34e3 (was 01d01d01d01d), torch 2.9.1 (was 2.8.0);"
    assert (line in said) == changed
    assert (folder.log.exists() and line in folder.log.read_text()) == changed
