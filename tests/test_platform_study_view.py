"""A sweep's search in optuna-dashboard: a copy, on loopback."""

import json
import sys
import threading
import urllib.request

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from scrimp_platform import study_view
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.errors import UserError


@pytest.fixture
def sweep(tmp_path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "lab")
    folder.path.mkdir()
    storage = JournalStorage(JournalFileBackend(str(folder.journal)))
    optuna.create_study(storage=storage, study_name="search")
    return folder


def test_the_dashboard_shows_a_copy_of_the_study(sweep):
    before = sweep.journal.read_bytes()
    with study_view.copied(sweep) as journal:
        server = study_view.start(journal, None)
        assert server.server.server_address[0] == "127.0.0.1"
        with pytest.raises(UserError, match=r"--port \d+: in use by another program"):
            study_view.start(journal, server.server.server_port)
        threading.Thread(target=study_view.serve, args=(server,), daemon=True).start()
        with urllib.request.urlopen(f"{server.uri}/api/studies") as answer:  # noqa: S310
            (study,) = json.load(answer)["study_summaries"]
        request = urllib.request.Request(f"{server.uri}/api/studies/{study['study_id']}", method="DELETE")  # noqa: S310
        urllib.request.urlopen(request)  # noqa: S310
        server.server.shutdown()
    assert study["study_name"] == "search"
    assert sweep.journal.read_bytes() == before


def test_what_is_missing_is_named(sweep, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no study.journal; name the folder of a sweep"):
        study_view.copied(SweepFolder(tmp_path)).__enter__()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(UserError, match="pip install optuna-dashboard"):
        study_view.start(sweep.journal, None)
