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


def test_every_port_that_is_fixed_is_in_the_table_of_ports_and_let_through_by_the_firewall():
    text = (TEMPLATES / "node.sh").read_text() + (ROOT / "cluster.yaml").read_text()
    fixed = {int(port) for port in re.findall(r"--[a-z-]*port=(\d+)", text)}
    guide = (ROOT / "docs" / "cluster.md").read_text()
    table = guide.split("**Ports.**")[1].split("\n\n")[1]
    first_cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    (firewall,) = re.findall(r"ufw allow proto tcp from \S+ to any port (\S+)", guide)

    assert {6379, 6380, 10002} <= fixed
    assert fixed <= ports(",".join(first_cells), " to ")
    assert fixed <= ports(firewall, ":")


def ports(text: str, to: str) -> set[int]:
    """Return all ports of a list such as `22, 6380 to 6384`."""
    named = set()
    for entry in text.split(","):
        first, _, last = entry.strip().partition(to)
        named |= set(range(int(first), int(last or first) + 1))
    return named
