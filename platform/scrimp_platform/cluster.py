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
from scrimp_trainers.common.errors import UserError

# Ray's own words to the terminal are for its developers; failures of repeats reach the ledger.
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
# Ray warns at every start that it may one day leave CUDA_VISIBLE_DEVICES alone for tasks without GPUs.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Tune's own tables would stand between the sweep's lines.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# So would Tune's traceback of a process that was killed; the sweep's own line says it.
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")


VITAL = ("gcs_server", "raylet")
"""The parts of a Ray without which it does not answer any more, as Ray calls them."""
WATCH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Placement:
    """What a repeat takes, and how many run at once."""

    nodes: tuple[Node, ...]
    gpus_per_repeat: int
    places: int
    avoided: tuple[Node, ...] = ()
    """Nodes of the cluster that get no repeats."""

    @property
    def devices(self) -> int:
        """Devices of one repeat: its GPUs, or one CPU worker."""
        return max(1, self.gpus_per_repeat)

    def describe(self) -> str:
        """Say in words what runs where."""
        gpus = sum(node.gpus for node in self.nodes)
        machines = f"{len(self.nodes)} node{'s' if len(self.nodes) > 1 else ''}"
        without = f"; without {', '.join(node.name for node in self.avoided)}" if self.avoided else ""
        at_once = f"{self.places} repeats at once"
        if not gpus:
            return f"{machines} without GPUs, {at_once}, each on one CPU core{without}"
        return f"{machines} with {gpus} GPUs, {at_once}, each on {self.gpus_per_repeat} of a node's{without}"


def place(nodes: tuple[Node, ...], gpus_per_repeat: int | None, avoided: tuple[Node, ...] = ()) -> Placement:
    """Fit repeats onto nodes: all of a node's GPUs each, or as many as asked for; one CPU core where there are none.

    Nodes that are to be avoided are not among the nodes.

    Raises
    ------
    UserError
        If no node has what a repeat is to take, or none has GPUs or CPU cores for repeats at all.
    """
    most = max((node.gpus for node in nodes), default=0)
    if gpus_per_repeat is None:
        gpus_per_repeat = min((node.gpus for node in nodes if node.gpus), default=0)
    have = ", ".join(f"{node.name}: {node.gpus} GPUs, {node.cpus} CPUs" for node in nodes)
    if gpus_per_repeat > most:
        raise UserError(f"--gpus-per-repeat {gpus_per_repeat}: no node has that many; there are {have}")
    places = sum(node.places(gpus_per_repeat) for node in nodes)
    if not places:  # the head of a cluster in Kubernetes, before its workers have started
        raise UserError(f"no node can train yet, there are {have}; wait until workers have joined (`ray status`)")
    return Placement(nodes, gpus_per_repeat, places, avoided)


def labels_of(nodes: Sequence[str]) -> dict[str, str]:
    """Return the label selector with which Ray places a repeat on one of these nodes (by id); on any if none is named.

    It names the nodes that are allowed, not those that are not: Ray applies it when a place becomes free, which may be
    on a node that was not there when it was written.
    """
    return {"ray.io/node-id": f"in({','.join(nodes)})"} if nodes else {}


@contextlib.contextmanager
def connect() -> Iterator[tuple[Node, ...]]:
    """Join the Ray cluster that is running, or start Ray on this machine for as long as the sweep lasts."""
    watch: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not _join():
        # Train frees a stopped trial's GPUs through the dashboard (ray#58515), so it is on where there are any.
        start_here(include_dashboard=_gpus_here() > 0)
        watch = _watched()
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


def address() -> str | None:
    """Return where the cluster is that `RAY_ADDRESS` names or that `ray start` started here; none if there is none.

    Ray's own `address="auto"` would also find the private Ray of another sweep on this machine. Its note is read
    without it, since to import it takes longer than all that a mistake's answer needs.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 -- as Ray chooses
    note = Path(folder, "ray", "ray_current_cluster")
    return os.environ.get("RAY_ADDRESS") or (note.read_text().strip() if note.exists() else None)


def _join() -> bool:
    """Join the running cluster; false if there is none."""
    where = address()
    if not where:
        return False
    proxies.bypass([proxies.host_of(where)])
    from ray.exceptions import AuthenticationError

    try:
        _init(address=where)
    except AuthenticationError as error:
        raise UserError(f"the Ray cluster at {where} does not know this user: {error}") from None
    except ValueError:
        raise UserError(f"RAY_ADDRESS {where}: not a cluster's address, such as head:6379; mend or unset it") from None
    except ConnectionError:
        raise UserError(f"no Ray cluster answers at {where}; start it, or unset RAY_ADDRESS and `ray stop`") from None
    return True


def _init(**options: Any) -> None:
    import ray
    from ray._private import worker

    # Ray has no setting for this: lines of its log for each process that dies. They are in its session's folder, too.
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        ray.init(**options, **QUIET)
    except SystemExit:  # what SIGTERM raises in there
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
        If its processes do not start in the 30 s that Ray waits, or its token cannot be written.
    """
    try:
        token.ensure_token()
    except OSError as error:
        raise UserError(f"{error.filename}: Ray's token cannot be written there ({error.strerror})") from None
    from ray._private import ray_constants

    # The switch that Ray has for laptops with a firewall: everything binds to 127.0.0.1. Without it Ray's ports are
    # open to the network even on a single machine, whatever `_node_ip_address` says.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    # Its processes inherit where it is. Train's, which free a stopped repeat's GPUs, would else find every Ray of this
    # machine, and give up if there is another.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.environ.update(inherited)
    try:
        _init(address="local", dashboard_host="127.0.0.1", **options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UserError("Ray did not start within 30 s: this machine is very busy; try again") from None
    finally:
        for name in inherited:
            del os.environ[name]


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """End this process when a vital part of its own Ray dies.

    Calls that wait for that part in Ray's C++ code wait for ever, and no exception reaches them. As after any death of
    the driver, everything that was decided is on disk.
    """
    from ray._private import worker

    node: Any = worker._global_node
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_INTERVAL_S):
            for name in VITAL:
                if any(part.process.poll() is not None for part in node.all_processes[name]):
                    _give_up(name)

    threading.Thread(target=watch, name="ray", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _give_up(part: str) -> None:
    number = interrupt.requested()  # SIGTERM for the whole process group ends Ray, too
    reason = "interrupted" if number else f"Ray's {part} has died"
    sys.stdout.flush()
    print(f"scrimp: {reason}; run the same command again to resume", file=sys.stderr, flush=True)
    os._exit(128 + number if number else 1)


def _gpus_here() -> int:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # the driver's, which Ray asks
    except OSError:
        return 0
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
