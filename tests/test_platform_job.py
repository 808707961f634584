"""The sweep as a job of a Ray cluster: what is submitted, who attaches, what Ctrl-C and a lost connection do."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from scrimp_platform import cluster, job, plan
from scrimp_platform import sweep as the_sweep
from scrimp_platform.cli import main
from scrimp_platform.plan import SweepOptions

SPACE = "recipe: tiny-edm\nsearch: {optimizer.lr: {uniform: [0.001, 0.01]}}\nobjectives: {fd_classifier: minimize}\n"
SPACE += "scoring: {extractor: classifier, samples: 64}\nbudget: {trials: 2, rungs_kimg: [2, 6]}\n"


class Job:
    """As much of Ray's JobDetails as is looked at."""

    def __init__(self, name: str, metadata: dict, status: str = "RUNNING", code: int | None = None):
        from ray.job_submission import JobStatus

        self.submission_id, self.metadata, self.message = name, metadata, "its supervisor died"
        self.status, self.driver_exit_code = JobStatus(status), code


class Client:
    """A cluster's Jobs API: jobs by name, each of which ends as soon as its log has been read."""

    def __init__(self, *jobs: Job, log: str = "trial 0 leads\n", ending: tuple[str, int | None] = ("SUCCEEDED", 0)):
        self.jobs = {each.submission_id: each for each in jobs}
        self.log, self.stopped, self.during = log, [], lambda: None
        self.ending: tuple[str, int | None] = ending
        self.entrypoint = ""

    def list_jobs(self):
        return list(self.jobs.values())

    def submit_job(self, entrypoint, submission_id, metadata, runtime_env):
        self.jobs[submission_id] = Job(submission_id, metadata)
        self.entrypoint, self.environment = entrypoint, runtime_env["env_vars"]
        return submission_id

    async def tail_job_logs(self, name):
        yield self.log
        self.during()
        self.jobs[name] = Job(name, {}, *self.ending)

    def get_job_info(self, name):
        return self.jobs[name]

    def stop_job(self, name):
        self.stopped.append(name)
        self.ending = ("STOPPED", None)


@pytest.fixture
def lab(scored_digits, tmp_path, monkeypatch):
    """A folder with a space and a dataset whose names are hard on a shell, and a cluster to run on."""
    folder = tmp_path / "the lab's"
    folder.mkdir()
    (folder / "two words.yaml").write_text(SPACE)
    (folder / "it's").symlink_to(scored_digits.folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(cluster, "running_address", lambda: "10.0.0.1:6379")
    monkeypatch.setattr(cluster, "peek", lambda: (cluster.Node("ws1", 16, 2),))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return folder


@pytest.fixture
def client(monkeypatch):
    """Let this Jobs API be the cluster's."""

    def install(*jobs: Job, **how) -> Client:
        it = Client(*jobs, **how)
        monkeypatch.setattr(job, "jobs_client", lambda address: it)
        return it

    return install


OPTIONS = SweepOptions(
    space="two words.yaml",
    data="it's",
    trials=3,
    rungs=(0.1, 2.5),
    name="mine",
    warm_start=(),
    max_gpu_hours=1.5,
    gpus_per_repeat=2,
    fresh=True,
    seed=0,
)


def parse(words: list[str]) -> SweepOptions:
    context = main.sweep_command.make_context("sweep", list(words), allow_extra_args=False)
    return SweepOptions(**context.params)


def test_the_job_gets_the_same_options_with_absolute_paths(lab):
    the_plan = plan.make_plan(OPTIONS)
    (told := parse(job.arguments(the_plan)))
    assert told == SweepOptions(
        **(
            vars(OPTIONS)
            | {
                "space": str(lab / "two words.yaml"),
                "data": str(lab / "it's"),
                "storage": lab / "runs",
                "fresh": False,
            }
        )
    )
    assert plan.make_plan(told).folder == the_plan.folder


def test_a_space_that_comes_with_scrimp_keeps_its_name_and_a_fresh_sweep_its_number(lab):
    (lab / "runs" / "mine").mkdir(parents=True)
    told = parse(job.arguments(plan.make_plan(SweepOptions(space="quickstart", data="it's", name="mine", fresh=True))))
    assert (told.space, told.name, told.fresh) == ("quickstart", "mine-2", False)


def test_options_arrive_whole_in_the_shell_that_ray_starts(lab, client, monkeypatch):
    python = lab / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    api = client()
    the_sweep.run_command(OPTIONS)
    monkeypatch.chdir("/")
    printed = subprocess.run(["sh", "-c", api.entrypoint], capture_output=True, text=True).stdout.splitlines()
    assert printed[:4] == [str(lab), "-c", job.CODE, "sweep"]
    assert parse(printed[4:]).data == str(lab / "it's")


def test_a_sweep_on_a_cluster_becomes_a_job_and_its_log_is_shown(lab, client, capsys):
    api = client()
    the_sweep.run_command(OPTIONS)
    (name,) = api.jobs
    assert name.startswith("mine-20")
    printed = capsys.readouterr().out
    assert f"`ray job stop {name}`" in printed
    assert printed.endswith("trial 0 leads\n")
    assert not (lab / "runs" / "mine").exists()  # the job makes it


def test_ray_s_lines_in_the_log_are_left_out(lab, client, capsys):
    log = (
        "2026-01-31 10:52:24,382\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job mine-20260131-105224: cd /root && exec scrimp sweep\n"
        "trial 0 leads\n"
    )
    client(log=log)
    the_sweep.run_command(OPTIONS)
    printed = capsys.readouterr().out
    assert printed.endswith("\n\ntrial 0 leads\n")
    assert "job_manager" not in printed


def test_in_a_job_the_sweep_runs_itself(lab, client, monkeypatch):
    api = client()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setattr(cluster, "connect", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        the_sweep.run_command(OPTIONS)
    assert api.jobs == {}


def test_the_same_command_attaches_to_the_job_that_runs(lab, client, capsys):
    the_plan = plan.make_plan(OPTIONS)
    mine = {"sweep": str(the_plan.folder.path), "options": shlex.join(job.arguments(the_plan))}
    others = [Job("ended", mine, "STOPPED"), Job("other", mine | {"sweep": "/else/mine"}), Job("bare", {})]
    api = client(*others, Job("running", mine))
    the_sweep.run_command(OPTIONS)
    assert len(api.jobs) == 4
    assert "Running as job running," in (printed := capsys.readouterr().out)
    assert "other options" not in printed


def test_whoever_attaches_with_other_options_is_told_which_hold(lab, client, capsys):
    api = client(Job("running", {"sweep": str(lab / "runs" / "mine"), "options": "--trials 60"}))
    the_sweep.run_command(OPTIONS)
    assert len(api.jobs) == 1
    assert "with other options, kept until it ends: --trials 60" in capsys.readouterr().out


def test_after_its_end_the_same_command_is_a_new_job(lab, client, monkeypatch):
    api = client()
    for clock in ("20261121-183000", "20261121-184500"):
        monkeypatch.setattr(job.time, "strftime", lambda _, clock=clock: clock)
        the_sweep.run_command(OPTIONS)
    assert list(api.jobs) == ["mine-20261121-183000", "mine-20261121-184500"]


@pytest.mark.parametrize(("ending", "status"), [(("FAILED", 2), 2), (("FAILED", None), 1), (("STOPPED", None), 130)])
def test_the_jobs_exit_status_is_ours(lab, client, ending, status):
    client(ending=ending)
    with pytest.raises(SystemExit) as left:
        the_sweep.run_command(OPTIONS)
    assert left.value.code == status


def test_ctrl_c_ends_the_job_and_its_last_words_are_read(lab, client, capsys):
    api = client()
    api.during = lambda: os.kill(os.getpid(), signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        the_sweep.run_command(OPTIONS)
    assert api.stopped == list(api.jobs)
    assert left.value.code == 130
    assert int(api.environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120  # for the report, and for MLflow to hear the rest
    assert signal.getsignal(signal.SIGINT) is before


def test_the_second_ctrl_c_leaves_at_once(lab, client):
    api = client()
    api.during = lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        the_sweep.run_command(OPTIONS)
    assert len(api.stopped) == 1


def test_a_cluster_that_goes_away_leaves_one_line(lab, client, capsys):
    api = client()
    api.get_job_info = lambda name: (_ for _ in ()).throw(ConnectionError("refused"))
    with pytest.raises(SystemExit) as left:
        the_sweep.run_command(OPTIONS)
    assert left.value.code == 1
    assert "Run the same command again to reattach or to resume the sweep." in capsys.readouterr().out
