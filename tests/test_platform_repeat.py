"""One repeat through Ray Tune and Ray Train: two workers of one process group, early stop included."""

import json

import pytest
import ray

from scrimp_platform import cluster, plan, search, store
from scrimp_platform.ledger import Ledger
from scrimp_platform.repeat import cause_of, tune_repeat
from scrimp_spaces import space as spaces
from scrimp_trainers.errors import Diverged


@pytest.fixture
def two_slots():
    cluster.start_here(num_cpus=2, num_gpus=2, include_dashboard=True)
    yield
    ray.shutdown()


def test_what_a_train_worker_raised_is_found_in_what_train_raises():
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    diverged = Diverged("step 3: loss is nan")
    wrapped = WorkerGroupError("Training failed", {1: UserExceptionWithTraceback(diverged, "Traceback ...")})
    assert cause_of(wrapped) is diverged
    assert cause_of(diverged) is diverged


def test_two_train_workers_share_a_repeat_and_its_successor_finds_the_places_free(two_slots, scored_digits, tmp_path):
    tree = spaces.load("quickstart").model_dump() | {
        "scoring": {"extractor": "classifier", "samples": 32},
        "override": {"sampler.steps": 2, "network.channels": 16},
        "search": {"optimizer.lr": {"loguniform": [1e-3, 1e-2]}},
        "budget": {"trials": 2, "rungs_kimg": [0.3, 0.6], "reduction": 2, "repeats": 1},
    }
    storage = store.Storage(tmp_path)
    folder = storage.sweep("ddp")
    space = spaces.parse(tree, "space")
    options = plan.Options(storage=tmp_path, data=str(scored_digits.folder))
    the_plan = plan.Plan(
        options, space, space.base(), storage, folder, scored_digits.folder, scored_digits.manifest, False
    )
    store.write_json(folder.sweep, plan.record(the_plan))
    ledger = Ledger(folder, space, 0, devices=2, say=print)
    task = {"sweep": str(folder.path), "dataset": str(scored_digits.folder), "gpus": 2}
    task |= {"avoided": ["0" * 56]}  # a node that is not there: what avoids it fits the one that is
    search.run(ledger, tune_repeat, task, places=1, limits=search.Limits(ledger))
    first, second = (trial.repeats[0] for trial in ledger.trials)
    assert first.status == "finished", folder.repeat(0, 0).error.read_text()
    assert second.status in ("finished", "stopped")
    assert set(first.scores) == {0.3, 0.6}
    assert first.last["samples"] == 32
    assert (folder.repeat(0, 0).model / "unet").is_dir()
    card = json.loads((folder.repeat(0, 0).checkpoint / "last" / "state.json").read_text())
    assert card["images"] == pytest.approx(600, abs=64)
