"""The machines: join the running Ray cluster or start Ray here, and count what fits on it at once."""

import contextlib
import ctypes
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrimp_cluster import nodes as cluster_nodes
from scrimp_cluster import proxies, token
from scrimp_cluster.nodes import Node
from scrimp_platform import interrupt
from scrimp_platform.arrangement import Choice
from scrimp_trainers.common.errors import UserError

# What Ray prints is for its developers; failures of repeats reach the ledger.
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
# Ray warns at every start that it may leave CUDA_VISIBLE_DEVICES unchanged in future for tasks without GPUs.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Tune would print its own tables between the lines of the sweep.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# And the traceback of each process that was killed; the ledger reports it in a line.
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")


AUTO = "auto"
"""As the number of GPUs of a repeat: with which of them most repeats finish is measured."""
VITAL_PROCESSES = ("gcs_server", "raylet")
"""Ray's names of the processes without which it no longer answers."""
PROCESS_CHECK_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Placement:
    """The devices of a repeat, and how many repeats run at once."""

    nodes: tuple[Node, ...]
    gpus_per_repeat: float
    """Below 1, the share of a GPU."""
    places: int
    avoided: tuple[Node, ...] = ()
    """Nodes of the cluster that get no repeats."""
    choice: Choice | None = None
    """What was measured to choose the number of GPUs, if it was."""

    @property
    def devices(self) -> float:
        """Number of devices of one repeat: its GPUs, its share of one, or one CPU worker."""
        return self.gpus_per_repeat or 1

    def describe(self) -> str:
        """Say in words what will run where."""
        gpus = sum(node.gpus for node in self.nodes)
        machines = f"{len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        at_once = f"{self.places} repeats at once"
        if 0 < self.gpus_per_repeat < 1:
            text = f"{machines} with {gpus} GPUs, {at_once}, {round(1 / self.gpus_per_repeat)} on each GPU"
        elif gpus:
            text = f"{machines} with {gpus} GPUs, {at_once}, each on {self.gpus_per_repeat} GPUs of a node"
        else:
            text = f"{machines} without GPUs, {at_once}, each on one CPU core"
        if self.avoided:
            text += f"; without {', '.join(node.name for node in self.avoided)}"
        return text


def place(nodes: tuple[Node, ...], gpus_per_repeat: float | str | None, avoided: tuple[Node, ...] = ()) -> Placement:
    """Fit repeats onto nodes: each takes all GPUs of a node, or `gpus_per_repeat`; one CPU core if there are no GPUs.

    Before it is measured how many are best, each takes all GPUs. The nodes to avoid are not among `nodes`.

    Raises
    ------
    UserError
        If no node has as many GPUs as a repeat takes, or none has GPUs or CPU cores for repeats at all.
    """
    gpus = [node.gpus for node in nodes]
    if gpus_per_repeat == AUTO and not any(gpus):
        raise UserError("--gpus-per-repeat auto: no node has GPUs, so there is nothing to choose; leave it out")
    if gpus_per_repeat is None or isinstance(gpus_per_repeat, str):
        gpus_per_repeat = min(filter(None, gpus), default=0)

    resources = ", ".join(f"{node.name}: {node.gpus} GPUs, {node.cpus} CPUs" for node in nodes)
    if gpus_per_repeat > max(gpus, default=0):
        raise UserError(f"--gpus-per-repeat {gpus_per_repeat}: no node has that many; there are {resources}")
    places = sum(node.places(gpus_per_repeat) for node in nodes)
    if not places:  # the head of a cluster in Kubernetes, before its workers have started
        raise UserError(f"no node can train yet, there are {resources}; wait until workers have joined (`ray status`)")
    return Placement(nodes, gpus_per_repeat, places, avoided)


def labels_of(nodes: Sequence[str]) -> dict[str, str]:
    """Return the label selector with which Ray places a repeat on one of these nodes (by id); on any if none is named.

    It lists the nodes that are allowed, not those that are excluded: Ray applies it when a place becomes free, which
    may be on a node that has joined since.
    """
    if not nodes:
        return {}
    return {"ray.io/node-id": f"in({','.join(nodes)})"}


@contextlib.contextmanager
def connect() -> Iterator[tuple[Node, ...]]:
    """Join the Ray cluster that is running, or start Ray on this machine for as long as the sweep lasts."""
    watch: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not _join():
        # Train frees a stopped trial's GPUs through the dashboard (ray#58515), so it is needed where there are GPUs.
        start_here(include_dashboard=_gpus_here() > 0)
        watch = _exit_when_ray_dies()
    try:
        with watch:
            yield cluster_nodes.alive()
    finally:
        _leave()


def peek() -> tuple[Node, ...]:
    """Describe the running cluster, or this machine where there is none; start nothing."""
    if not _join():
        return (Node(os.uname().nodename, os.cpu_count() or 1, _gpus_here()),)
    try:
        return cluster_nodes.alive()
    finally:
        _leave()


def running_address() -> str | None:
    """Return the address of the cluster that `RAY_ADDRESS` names or that `ray start` started here; none otherwise.

    Ray's own `address="auto"` would also find the private Ray of another sweep on this machine. Ray's file is read
    directly, since importing Ray takes longer than everything else that answers a user's mistake.
    """
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 -- as Ray chooses
    file = Path(folder, "ray", "ray_current_cluster")
    if not file.exists():
        return None
    return file.read_text().strip()


def _join() -> bool:
    """Join the running cluster; false if there is none."""
    address = running_address()
    if not address:
        return False
    proxies.bypass([proxies.host_of(address)])
    from ray.exceptions import AuthenticationError

    try:
        _init(address=address)
    except AuthenticationError as error:
        raise UserError(f"the Ray cluster at {address} rejects this user's token: {error}") from None
    except ValueError:
        raise UserError(f"RAY_ADDRESS {address}: not a cluster's address, such as head:6379; fix or unset it") from None
    except ConnectionError:
        raise UserError(f"no Ray cluster answers at {address}; start it, or unset RAY_ADDRESS and `ray stop`") from None
    return True


def _init(**options: Any) -> None:
    import ray
    from ray._private import worker

    # Ray prints log lines for each process that dies and has no setting for it. They are in its session folder, too.
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        ray.init(**options, **QUIET)
    except SystemExit:  # raised by Ray's handler of SIGTERM
        raise interrupt.Terminated from None
    finally:
        interrupt.listen()


def _leave() -> None:
    import ray

    ray.shutdown()


def start_here(**options: Any) -> None:
    """Start Ray on this machine, reachable from this machine only.

    Raises
    ------
    UserError
        If Ray's processes do not start within its 30 s, or its token cannot be written.
    """
    try:
        token.ensure_token()
    except OSError as error:
        raise UserError(f"{error.filename}: Ray's token cannot be written there ({error.strerror})") from None
    from ray._private import ray_constants

    # Ray's switch for laptops with a firewall: everything binds to 127.0.0.1. Without it Ray's ports are open to the
    # network even on a single machine, whatever `_node_ip_address` says.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False

    # Ray's processes inherit its address. Otherwise Train, to free a stopped repeat's GPUs, would look for any Ray on
    # this machine, and fail if there are two.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.environ.update(inherited)
    try:
        _init(address="local", dashboard_host="127.0.0.1", **options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UserError("Ray did not start within 30 s: this machine may be overloaded; try again") from None
    finally:
        for name in inherited:
            del os.environ[name]


@contextlib.contextmanager
def _exit_when_ray_dies() -> Iterator[None]:
    """End this process when a vital process of its own Ray dies.

    Calls into Ray's C++ code would wait for that process for ever, and no exception reaches them. Everything that was
    decided is on disk, as after any death of the driver.
    """
    from ray._private import worker

    node: Any = worker._global_node
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PROCESS_CHECK_INTERVAL_S):
            for name in VITAL_PROCESSES:
                if any(entry.process.poll() is not None for entry in node.all_processes[name]):
                    _exit(name)

    threading.Thread(target=watch, name="ray", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _exit(dead_process: str) -> None:
    reason = f"Ray's {dead_process} has died"
    status = 1
    signal_number = interrupt.requested()
    if signal_number:  # SIGTERM to the whole process group ends Ray, too
        reason = "interrupted"
        status = 128 + signal_number
    sys.stdout.flush()
    print(f"scrimp: {reason}; run the same command again to resume", file=sys.stderr, flush=True)
    os._exit(status)


def _gpus_here() -> int:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # the driver's library, which Ray queries
    except OSError:
        return 0
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
