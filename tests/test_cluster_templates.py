"""What a Ray cluster that is already there is given."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "cluster" / "scrimp_cluster"


def test_a_job_finds_all_of_scrimp_in_the_clone_that_comes_with_it():
    environment = yaml.safe_load((TEMPLATES / "runtime_env.yaml").read_text())["env_vars"]
    roots = environment["PYTHONPATH"].split(":")
    found = sorted(path.name for root in roots for path in (ROOT / root).glob("scrimp_*"))
    assert found == ["scrimp_cluster", "scrimp_platform", "scrimp_spaces", "scrimp_trainers"]


def test_kubernetes_runs_the_ray_of_the_lock_with_a_token():
    cluster = yaml.safe_load((TEMPLATES / "kuberay.yaml").read_text())
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == version
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
