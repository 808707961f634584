"""A second node joins a Ray that runs: what waits goes there once the doctor has found it fit, and not before."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from made_up_rows import TICK
from ray.cluster_utils import Cluster
from test_platform_ledger import open_ledger
from test_platform_race import make_space

from scrimp_cluster import token
from scrimp_platform import cluster, worker
from scrimp_platform.search import tune_loop
from scrimp_platform.search.ledger import Ledger
from scrimp_platform.store import SweepFolder
from scrimp_trainers.common.metrics_log import MetricsRow

EXAMINATION_S = 5.0
"""Seconds until the doctor has seen the new node."""
ENDED: list[Any] = []
"""Nodes that have ended, kept as long as this process. A process forked by Python 3.13 drops the exit handlers, which
alone hold them; closing a node's connection there ends it with a segmentation fault."""


@pytest.fixture
def one_node(monkeypatch):
    token.ensure_token()
    # Ray writes there which cluster runs, and the sweeps of other tests would join it.
    folder = tempfile.mkdtemp(dir="/tmp")  # the paths of Ray's sockets must be short
    monkeypatch.setenv("RAY_TMPDIR", folder)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=nodes.address, **cluster.QUIET)
    yield nodes
    ENDED.extend(nodes.list_all_nodes())
    ray.shutdown()
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


class FitNodes:
    """The first node; once a repeat has waited for another place for some time, a second one joins and is examined."""

    def __init__(self, nodes: Cluster, ledger: Ledger) -> None:
        self.nodes = nodes
        self.ledger = ledger
        self.first = ray.get_runtime_context().get_node_id()
        self.second = ""
        self.joins = float("inf")
        self.examined = float("inf")

    def __getstate__(self) -> dict[str, Any]:
        """Keep the processes out of Tune's own records."""
        return {}

    def __call__(self) -> list[str]:
        if len(self.ledger.trials) == 2:
            self.joins = min(self.joins, time.time() + 1)
        if time.time() > self.joins and not self.second:
            self.second = self.nodes.add_node(num_cpus=1).node_id
            self.examined = time.time() + EXAMINATION_S
        return [self.first, self.second] if time.time() > self.examined else [self.first]


def test_what_waits_goes_to_a_node_that_joins_once_that_is_found_fit(one_node, tmp_path):
    def pretend(config: dict) -> None:
        import ray
        from ray import tune

        place = Path(config["places"]) / str(config["trial"])
        place.write_text(f"{time.time()} {ray.get_runtime_context().get_node_id()}")
        while not (Path(config["places"]) / "1").exists():
            time.sleep(0.1)
        scores = {"rung": 20.0, "fd_classifier": float(config["trial"])}
        tune.report({worker.ROW: MetricsRow.from_entries(TICK | scores)})

    places = tmp_path / "places"
    places.mkdir()
    space = make_space(budget={"trials": 2, "rungs_kimg": [20], "reduction": 2, "leaders": 1, "repeats": 1})
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"), space)
    fit_nodes = FitNodes(one_node, ledger)
    tune_loop.run_repeats(ledger, pretend, {"places": str(places)}, lambda: 2, tune_loop.Limits(ledger), fit_nodes)

    assert [(repeat.status, repeat.attempt) for repeat in ledger.repeats] == [("finished", 1)] * 2
    began, node = (places / "1").read_text().split()
    assert node == fit_nodes.second
    assert float(began) > fit_nodes.examined
