"""Ray Tune driven by the ledger: real processes, made-up training."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray
from made_up_rows import TICK
from test_platform_ledger import open_ledger, study
from test_platform_race import make_space

from scrimp_platform import cluster, interrupt, store, worker
from scrimp_platform.search import tune_loop
from scrimp_platform.store import SweepFolder
from scrimp_platform.worker import tune_repeat
from scrimp_trainers.common.metrics_log import MetricsRow

GONE = "0" * 56
"""The id of a node that is not there."""


@pytest.fixture(scope="module")
def ray_here():
    with cluster.connect() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def pretend():
    """A Tune function; defined in here, so that Ray ships its code instead of this module's name."""

    def pretend(config: dict) -> None:
        """Report two rungs at once; each process leaves its number behind."""
        from ray import tune

        from scrimp_trainers.common import heartbeat

        with Path(config["pids"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if config["trial"] == 1:
            os._exit(9)
        if config["trial"] == 2:
            tune.report({worker.FAILURE: "Diverged: step 3: loss is nan", worker.NON_RETRYABLE: True})
            return
        if config["trial"] == 3:
            tune.report({worker.NOTE: "its checkpoint is damaged"})
            with heartbeat.watched(Path(config["stacks"]), 0.5):
                heartbeat.beat()
                time.sleep(60)
        for rung in (20.0, 60.0):
            scores = {"rung": rung, "kimg": rung, "fd_classifier": config["trial"] + 1 / rung}
            tune.report({worker.ROW: MetricsRow.from_entries(TICK | scores)})

    return pretend


@pytest.fixture(scope="module")
def sweep(ray_here, pretend, tmp_path_factory):
    folder = SweepFolder(tmp_path_factory.mktemp("search") / "sweep")
    space = make_space(
        budget={"trials": 6, "rungs_kimg": [20, 60], "reduction": 2, "leaders": 2, "repeats": 3, "retries": 1}
    )
    said: list[str] = []
    ledger = open_ledger(folder, space, say=said.append)
    pids = folder.path / "pids"
    config = {"pids": str(pids), "stacks": str(folder.repeat(3, 0).stacks)}
    tune_loop.run_repeats(ledger, pretend, config, places=lambda: 2, limits=tune_loop.Limits(ledger))
    return ledger, list(map(int, pids.read_text().split())), said


def test_tune_runs_the_search_and_the_race_to_the_end(sweep):
    ledger, _, _ = sweep
    assert len(ledger.trials) == 6
    assert ledger.trials[0].status == "complete"
    assert len(ledger.trials[0].repeats) == 3
    assert not ledger.running
    assert all(trial.state.is_finished() for trial in study(ledger.folder).trials)


def test_a_repeat_whose_process_dies_is_tried_again_and_then_failed(sweep):
    ledger, _, _ = sweep
    repeat = ledger.trials[1].repeats[0]
    assert (repeat.status, repeat.attempt) == ("failed", 2)
    assert "process died" in repeat.cause


def test_a_process_that_ray_ends_to_free_memory_has_died_and_no_more():
    """Ray does it where a machine has little memory left, which no test should wait for; Tune would end the sweep."""
    from ray.air.execution._internal.tracked_actor import TrackedActor
    from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.tune.execution import tune_controller

    told: list[tuple[str, Exception]] = []
    manager = tune_controller.RayActorManager(mock.Mock())
    actor = TrackedActor(1, on_error=lambda _, error: told.append(("actor", error)))
    manager._live_actors_to_ray_actors_resources[actor] = (mock.Mock(), mock.Mock())
    task = TrackedActorTask(actor, on_error=lambda _, error: told.append(("task", error)))
    manager._actor_task_failed(task, OutOfMemoryError("1 worker(s) were killed"))

    assert [who for who, _ in told] == ["actor", "task"]
    assert all(isinstance(error, RayActorError) and "were killed" in str(error) for _, error in told)


def test_a_repeat_that_diverged_fails_at_once_with_its_cause(sweep):
    ledger, _, _ = sweep
    repeat = ledger.trials[2].repeats[0]
    assert (repeat.status, repeat.attempt, repeat.cause) == ("failed", 1, "Diverged: step 3: loss is nan")


def test_a_repeat_that_hangs_is_ended_and_tried_again_and_then_failed(sweep):
    ledger, _, said = sweep
    repeat = ledger.trials[3].repeats[0]
    assert (repeat.status, repeat.attempt) == ("failed", 2)
    assert repeat.cause.startswith("no progress for 0:00:00.500")
    assert any(line.startswith("repeat 3.0 failed (no progress for") for line in said)


def test_what_a_repeat_has_to_say_is_in_the_log(sweep):
    _, _, said = sweep
    assert said.count("repeat 3.0: its checkpoint is damaged") == 2  # once an attempt


def test_a_damaged_shard_fails_a_repeat_at_once_and_is_named(ray_here, scored_digits, tmp_path):
    """A flipped bit in one image: what trains is the real worker function."""
    data = shutil.copytree(scored_digits.folder, tmp_path / "data")
    shard = data / scored_digits.manifest.splits["train"].shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    folder = SweepFolder(tmp_path / "sweep")
    space = make_space(budget={"trials": 1, "rungs_kimg": [1], "retries": 1})
    said: list[str] = []
    ledger = open_ledger(folder, space, say=said.append)
    store.write_json(folder.description, {"space": space.model_dump(mode="json")})
    task = {"sweep": str(folder.path), "dataset": str(data), "gpus": 0}
    failures: list[str] = []
    tune_loop.run_repeats(
        ledger, tune_repeat, task, places=lambda: 1, limits=tune_loop.Limits(ledger), record_failure=failures.append
    )
    repeat = ledger.trials[0].repeats[0]
    assert (repeat.status, repeat.attempt) == ("failed", 1)
    assert f"repeat 0.0 failed (DamagedData: {shard}: is missing or damaged; prepare the dataset again)" in said[-1]
    assert not failures  # it would fail so anywhere


def test_a_node_that_has_lost_the_storage_is_blamed(ray_here, tmp_path):
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"), make_space(budget={"trials": 1, "retries": 1}))
    elsewhere = tmp_path / "not mounted"
    task = {"sweep": str(elsewhere), "dataset": "", "gpus": 0}
    failures: list[str] = []
    tune_loop.run_repeats(
        ledger, tune_repeat, task, places=lambda: 1, limits=tune_loop.Limits(ledger), record_failure=failures.append
    )
    repeat = ledger.trials[0].repeats[0]
    assert (repeat.status, repeat.attempt) == ("failed", 2)
    assert "is the storage folder mounted?" in repeat.cause
    assert failures == [ray_here[0].id] * 2


def test_processes_are_kept_for_the_next_repeat(sweep):
    _, pids, _ = sweep
    assert len(set(pids)) < len(pids)


@pytest.mark.slow
def test_no_repeat_is_lost_when_a_stopped_one_does_not_end(ray_here, tmp_path):
    def lingers(config: dict) -> None:
        from ray import tune

        try:
            for rung in (20.0, 60.0):
                scores = {"rung": rung, "kimg": rung, "fd_classifier": config["trial"] + 1 / rung}
                tune.report({worker.ROW: MetricsRow.from_entries(TICK | scores)})
        finally:
            time.sleep(5)  # Ray waits two seconds for the process to become free

    space = make_space(budget={"trials": 4, "rungs_kimg": [20, 60], "reduction": 2, "leaders": 1, "repeats": 1})
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"), space)
    tune_loop.run_repeats(ledger, lingers, {}, lambda: 1, tune_loop.Limits(ledger))
    assert not ledger.running
    assert {repeat.status for repeat in ledger.repeats} == {"finished", "stopped"}


def one_rung(trials: int):
    return make_space(budget={"trials": trials, "rungs_kimg": [20], "reduction": 2, "leaders": 1, "repeats": 1})


def test_what_waits_for_a_place_is_handed_out_again_when_other_nodes_are_fit(ray_here, tmp_path, capfd):
    """Two run and a third waits when another node becomes fit. No place is lost: the two after them run together."""

    def together(config: dict) -> None:
        from ray import tune

        begun = Path(config["begun"])
        (begun / str(config["trial"])).write_text(" ".join(config["fit_nodes"]))
        awaited = ["withdrawn"] if config["trial"] < 2 else ["2", "3"]
        deadline = time.monotonic() + 60
        while not all((begun / name).exists() for name in awaited):
            if time.monotonic() > deadline:
                tune.report({worker.FAILURE: f"{awaited} have not all begun", worker.NON_RETRYABLE: True})
                return
            time.sleep(0.1)
        scores = {"rung": 20.0, "fd_classifier": float(config["trial"])}
        tune.report({worker.ROW: MetricsRow.from_entries(TICK | scores)})

    def say(line: str) -> None:
        said.append(line)
        if "withdrawing repeat" in line:
            (begun / "withdrawn").touch()

    def fit_nodes() -> list[str]:
        if len(ledger.trials) > 2 and (begun / "0").exists() and (begun / "1").exists():
            asked.append(time.monotonic())
        return [here, GONE] if asked and time.monotonic() > asked[0] + 1 else [here]

    here = ray_here[0].id
    begun = tmp_path / "begun"
    begun.mkdir()
    said: list[str] = []
    asked: list[float] = []
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"), one_rung(4), say=say)
    config = {"begun": str(begun)}
    all_but_two = ray.remote(lambda: time.sleep(300)).options(num_cpus=ray_here[0].cpus - 2).remote()
    tune_loop.run_repeats(ledger, together, config, lambda: 3, tune_loop.Limits(ledger), fit_nodes)
    ray.cancel(all_but_two, force=True)

    assert [line for line in said if "withdrawing repeat" in line] == [
        "withdrawing repeat 2.0, which was waiting: the healthy nodes have changed"
    ]
    assert [(repeat.status, repeat.attempt) for repeat in ledger.repeats] == [("finished", 1)] * 4
    assert not capfd.readouterr().out
    assert [(begun / str(trial)).read_text() for trial in range(4)] == [here, here, *[f"{here} {GONE}"] * 2]


def test_a_stopped_repeat_ends_though_it_reports_nothing_and_its_place_is_free(ray_here, tmp_path, capfd):
    def pretend(config: dict) -> None:
        from ray import tune

        tune.report({worker.WORKING: True})
        if config["trial"] == 0:
            time.sleep(300)
        tune.report({worker.ROW: MetricsRow.from_entries(TICK | {"rung": 20.0, "fd_classifier": 0.0})})

    def stop_the_first() -> None:
        first = ledger.trials[0].repeats[0] if ledger.trials else None
        if first and first.began:
            ledger.trials[0].stopped = "stopped by anna"
            ledger.stop(first, "stopped by anna")

    began = time.monotonic()
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"), one_rung(2))
    tune_loop.run_repeats(
        ledger, pretend, {}, lambda: 1, tune_loop.Limits(ledger), reuse=True, each_step=stop_the_first
    )
    assert time.monotonic() - began < 120
    assert [(repeat.status, repeat.attempt) for repeat in ledger.repeats] == [("stopped", 1), ("finished", 1)]
    assert "".join(capfd.readouterr()) == ""


def test_a_process_that_waits_for_gpus_is_withdrawn_and_one_that_works_is_not(ray_here, tmp_path):
    def pretend(config: dict) -> None:
        from ray import tune

        while len(config["fit_nodes"]) < 2:
            Path(config["asked"]).touch()
            time.sleep(0.5)
            tune.report({worker.WORKING: False})
        tune.report({worker.WORKING: True})
        Path(config["working"]).touch()
        time.sleep(2)
        tune.report({worker.ROW: MetricsRow.from_entries(TICK | {"rung": 20.0, "fd_classifier": 0.0})})

    def fit_nodes() -> list[str]:
        return [here] if (tmp_path / "asked").exists() == (tmp_path / "working").exists() else [here, GONE]

    here = ray_here[0].id
    said: list[str] = []
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"), one_rung(1), say=said.append)
    config = {name: str(tmp_path / name) for name in ("asked", "working")}
    tune_loop.run_repeats(ledger, pretend, config, lambda: 1, tune_loop.Limits(ledger), fit_nodes, reuse=False)

    assert len([line for line in said if "withdrawing repeat" in line]) == 1
    assert [(repeat.status, repeat.attempt) for repeat in ledger.repeats] == [("finished", 1)]


def test_a_limit_ends_the_sweep_and_what_ran_can_go_on(ray_here, pretend, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    budget = make_space().budget.model_dump() | {"max_gpu_hours": 1e-9}
    ledger = open_ledger(folder, make_space(budget=budget))
    limits = tune_loop.Limits(ledger)
    tune_loop.run_repeats(ledger, pretend, {"pids": str(tmp_path / "pids")}, places=lambda: 2, limits=limits)
    assert limits.reached == "max_gpu_hours 1e-09 reached"
    assert len(ledger.trials) < 8


def test_ctrl_c_ends_a_repeat_that_will_not_report_for_long(ray_here, tmp_path, monkeypatch):
    """Its thread may wait for room on the disk, or be on its way to a distant rung."""
    monkeypatch.setattr(interrupt, "_requested", None)

    def wait(config: dict) -> None:
        Path(config["began"]).touch()
        time.sleep(300)

    def stop() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.1)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    pressed: list[float] = []
    ledger = open_ledger(SweepFolder(tmp_path / "sweep"))
    threading.Thread(target=stop).start()
    with interrupt.deferred(lambda: None):
        tune_loop.run_repeats(
            ledger, wait, {"began": str(tmp_path / "began")}, places=lambda: 1, limits=tune_loop.Limits(ledger)
        )
    assert time.monotonic() - pressed[0] < 4
    assert [repeat.status for repeat in ledger.repeats] == ["running"]  # and resumed by the next driver


def test_ctrl_c_while_the_limits_are_looked_at_is_heard(monkeypatch):
    monkeypatch.setattr(interrupt, "_requested", None)
    ledger = mock.Mock(space=make_space(), exhausted=lambda: signal.raise_signal(signal.SIGINT) or "")
    limits = tune_loop.Limits(ledger)
    with interrupt.deferred(lambda: None):
        assert limits.stop_all()
    assert limits.reached == "interrupted"


def test_a_private_ray_names_the_parts_that_are_watched(ray_here):
    """A canary: they are private to Ray."""
    from ray._private import worker

    node: Any = worker._global_node
    for name in cluster.VITAL_PROCESSES:
        assert [part.process.poll() for part in node.all_processes[name]] == [None]


def test_ray_prints_no_lines_of_its_own_log(ray_here, capfd):
    from ray._private import utils, worker

    node: Any = worker._global_node
    utils.publish_error_to_driver("test", "lines of a raylet's log", gcs_client=node.get_gcs_client())
    time.sleep(1)
    assert "raylet" not in "".join(capfd.readouterr())


def test_sigterm_is_the_sweeps_and_not_rays(ray_here):
    with pytest.raises(interrupt.Terminated):
        signal.raise_signal(signal.SIGTERM)


def test_the_processes_of_a_private_ray_know_which_one_it_is(ray_here):
    """Else those of Ray Train that free GPUs fail where the machine has another Ray."""
    told = ray.get(ray.remote(lambda: os.environ.get("RAY_ADDRESS")).remote())
    assert told == ray.get_runtime_context().gcs_address
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.parametrize("named", [False, True])
def test_a_sweep_joins_the_ray_that_is_named_and_never_the_private_one_of_another(ray_here, named):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if named:
        environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    code = "import ray; from scrimp_platform import cluster; cluster.peek(); print(cluster._join(), len(ray.nodes()))"
    code = code if named else "from scrimp_platform import cluster; print(cluster._join())"
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert answer.stdout.strip() == ("True 1" if named else "False"), answer.stderr
