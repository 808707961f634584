"""Workstations on one machine: network namespaces, each with its own processes, address, home, /tmp and sshd.

They share the file system below that, so this machine's environment serves them all: it is mounted, read-only, where
`ray up` would install it. What `ray up` sends to a workstation covers, for its processes alone, the clone that this
environment belongs to; so a workstation runs what was sent to it. /mnt stands for the lab's shared folder.
"""

import argparse
import contextlib
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.prefix)
HOME = Path(pwd.getpwuid(0).pw_dir)
BRIDGE, NETWORK = "scrimp", "10.77.0"
LAPTOP = "laptop"
STORAGE = "/mnt/scrimp"
RAY_START = (
    "flock --close /mnt/start env RAY_memory_monitor_refresh_ms=0 "
    "ray start --num-cpus=2 --num-gpus=2 --include-log-monitor=false"
)
"""How hosts that share a machine start Ray: one after another, since all at once, on few cores, it takes longer than
Ray waits. Two slots stand for GPUs. None watches over memory: each would take what all of them use for its own, and
kill repeats. And none reads logs aloud, to which no sweep listens."""
WORKER, CONTROLLER, RAYLET = "ray::RayTrainWorker", "ray::TrainController", "/raylet/raylet --"
"""In the commands of processes: what trains, what watches over that, and what makes a machine a node of Ray."""
ALIVE = "sum(node['Alive'] for node in ray.nodes())"
FREE = "ray.available_resources().get('GPU', 0)"

BOOT = """
set -eu
hostname "$NAME"
mount -t tmpfs -o size=8g tmpfs /dev/shm
mkdir -p home/scrimp/.venv run/sshd
mount -o bind,ro "$ENVIRONMENT" home/scrimp/.venv
case "$INTERPRETER" in "$HOME"/*)
    mkdir -p "home${INTERPRETER#"$HOME"}"
    mount -o bind,ro "$INTERPRETER" "home${INTERPRETER#"$HOME"}"
esac
mount --rbind home "$HOME"
mount --bind ../shared /mnt
mount --bind ../hosts /etc/hosts
mount --bind run /run
mount --bind tmp /tmp
mkdir -p "$CLONE"
mount --rbind home/scrimp "$CLONE"
exec /usr/sbin/sshd -D -e -f /dev/null -h /run/hostkey -o PidFile=none
"""


@dataclass(frozen=True)
class Host:
    """One workstation, or the laptop from which they are used."""

    name: str
    address: str
    fleet: Path
    """The fleet's folder."""

    @property
    def namespace(self) -> str:
        """Of its network, with its processes."""
        return f"{BRIDGE}-{self.name}"

    @property
    def home(self) -> Path:
        """Its home folder, as this machine sees it."""
        return self.fleet / self.name / "home"

    def install(self) -> None:
        """Put it together, without power."""
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True)
        for folder, mode in ((self.home, 0o700), (ssh, 0o700)):
            folder.chmod(mode)
        shutil.copy(self.fleet / "key.pub", ssh / "authorized_keys")
        for name, mode in (("tmp", 0o1777), ("run", 0o755)):
            (self.home.parent / name).mkdir()
            (self.home.parent / name).chmod(mode)
        shutil.copy(self.fleet / "hostkey", self.home.parent / "run")
        cable = f"{BRIDGE}-{self.address.rpartition('.')[2]}"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", cable, "master", BRIDGE, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "lo", "up")

    def boot(self) -> None:
        """Switch it on."""
        self.plug("up")
        settings = {"NAME": self.name, "ENVIRONMENT": ENVIRONMENT, "INTERPRETER": sys.base_prefix}
        settings |= {"HOME": HOME, "CLONE": ENVIRONMENT.parent, "PATH": os.environ["PATH"]}
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--uts"]
        with (self.home.parent / "sshd.log").open("a") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *isolated, "sh", "-c", BOOT],
                cwd=self.home.parent,
                env={name: str(value) for name, value in settings.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while not self.answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {(self.home.parent / 'sshd.log').read_text()}")
            time.sleep(0.2)

    def answers(self) -> bool:
        """Whether one can log in."""
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
            return True
        return False

    def plug(self, state: str) -> None:
        """Plug its network cable in (`up`), or pull it (`down`)."""
        _ip("-n", self.namespace, "link", "set", "eth0", state)
        if state == "up":
            # Without a default route Ray takes 127.0.0.1 for its address.
            _ip("-n", self.namespace, "route", "replace", "default", "via", f"{NETWORK}.254")

    def crash(self) -> None:
        """Cut its power: nobody hears a word of it."""
        self.plug("down")
        self.kill_all()

    def kill_all(self) -> None:
        """End all its processes at once."""
        for process in self.processes():
            _kill(process)

    def kill(self, name: str) -> bool:
        """Kill one of its processes that has this in its command; returns whether there was one."""
        found = [process for process, command in self.processes().items() if name in command]
        if found:
            _kill(min(found))
        return bool(found)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to all its processes that have this in their command."""
        for process, command in self.processes().items():
            if name in command:
                os.kill(process, number)

    def processes(self) -> dict[int, str]:
        """Return the commands of its processes, by this machine's numbers for them."""
        commands = {}
        for process in map(int, _ip("netns", "pids", self.namespace).split()):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                commands[process] = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
        return commands

    def command(self, line: str) -> list[str]:
        """Return what runs a line of shell there, after a login as a person's."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"]
        flags = [flag for option in options for flag in ("-o", option)]
        line = f"bash -lc {shlex.quote(f'if [ -f ~/.bashrc ]; then . ~/.bashrc; fi; {line}')}"
        return ["ssh", "-i", str(self.fleet / "key"), *flags, f"root@{self.address}", line]

    def run(self, line: str, timeout: float = 60) -> str:
        """Run a line of shell there and return what it printed.

        Raises
        ------
        RuntimeError
            If it fails, with what it printed.
        """
        done = subprocess.run(
            self.command(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {line}: exit status {done.returncode}\n{done.stdout}")
        return done.stdout


@dataclass(frozen=True)
class Fleet:
    """The workstations, the head first, and the laptop."""

    folder: Path
    hosts: tuple[Host, ...]
    laptop: Host

    @property
    def storage(self) -> Path:
        """The storage folder, as this machine sees it."""
        return self.folder / "shared" / "scrimp"

    def ask(self, expression: str) -> str:
        """Return an expression's value on the head, in a process that has joined the cluster."""
        code = f"import ray; ray.init(address='auto', logging_level=40, log_to_driver=False); print('=', {expression})"
        printed = self.hosts[0].run(f'python -c "{code}"', timeout=600)
        return printed.rpartition("= ")[2].strip()


def up(number: int, folder: Path) -> Fleet:
    """Start so many workstations, and a laptop with a clone whose cluster.yaml has their addresses."""
    if BRIDGE in {line.split()[0] for line in _ip("-br", "link").splitlines()}:
        raise SystemExit("a fleet is up already; `make fleet-down` ends it")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "shared").mkdir(parents=True)
    for key in ("key", "hostkey"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    hosts = tuple(Host(f"ws{i}", f"{NETWORK}.{i}", folder) for i in range(1, number + 1))
    fleet = Fleet(folder, hosts, Host(LAPTOP, f"{NETWORK}.200", folder))
    names = "".join(f"{host.address} {host.name}\n" for host in (*hosts, fleet.laptop))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for host in (*hosts, fleet.laptop):
            host.install()
            host.boot()
        _clone(fleet)
    except BaseException:
        down()
        raise
    return fleet


def _clone(fleet: Fleet) -> None:
    """Give the laptop what it would have cloned, its cluster.yaml filled in, and the environment on its PATH."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
    clone = fleet.laptop.home / "scrimp"
    subprocess.run(["rsync", "-a", "--from0", "--files-from=-", f"{ROOT}/", f"{clone}/"], input=files, check=True)
    shutil.copy(fleet.folder / "key", fleet.laptop.home / ".ssh" / "scrimp")
    filled = filled_in((ROOT / "cluster.yaml").read_text(), [host.address for host in fleet.hosts])
    (clone / "cluster.yaml").write_text(yaml.safe_dump(filled, sort_keys=False))
    (fleet.laptop.home / ".bashrc").write_text("PATH=~/scrimp/.venv/bin:$PATH\ncd ~/scrimp\n")


def filled_in(text: str, addresses: list[str]) -> dict[str, Any]:
    """Fill in cluster.yaml as a person would, and let two slots on each host stand for GPUs."""
    cluster = yaml.safe_load(text)
    cluster["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
    cluster["auth"]["ssh_user"] = "root"
    (setup,) = cluster["setup_commands"]
    cluster["setup_commands"] = [f"{setup.rpartition(' ')[0]} {STORAGE}"]
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        commands[-1] = commands[-1].replace("ray start", RAY_START)
    return cluster


def down() -> None:
    """End every process of the fleet and take its network away; its files stay."""
    for line in _ip("netns").splitlines():
        namespace = line.split()[0]
        if namespace.startswith(f"{BRIDGE}-"):
            host = Host(namespace.removeprefix(f"{BRIDGE}-"), "", Path())
            while host.processes():
                host.kill_all()
                time.sleep(0.1)
            _ip("netns", "del", namespace)
    for line in _ip("-br", "link").splitlines():
        name = line.split()[0].partition("@")[0]
        if name == BRIDGE or name.startswith(f"{BRIDGE}-"):
            with contextlib.suppress(RuntimeError):  # gone along with its namespace
                _ip("link", "del", name)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 9)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Start a fleet or end it."""
    parser = argparse.ArgumentParser(description="Workstations on this machine, as network namespaces.")
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--hosts", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.action == "down":
        down()
        return
    fleet = up(arguments.hosts, ROOT / ".fleet")
    print(f"{len(fleet.hosts)} workstations: {', '.join(host.address for host in fleet.hosts)}")
    print("Log in to the laptop, and use them from there; `make fleet-down` ends them:\n")
    print(f"    ssh -i .fleet/key -o StrictHostKeyChecking=no root@{fleet.laptop.address}")
    print("    ray up cluster.yaml\n    ray submit cluster.yaml sweep.py --space quickstart --data digits")


if __name__ == "__main__":
    main()
