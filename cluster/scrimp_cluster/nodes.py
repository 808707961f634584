"""The nodes of the Ray cluster that this process has joined, and small functions run on them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with what Ray counts on it."""

    name: str
    cpus: int
    gpus: int
    id: str = ""
    address: str = ""
    raylet: int = 0
    """Port of its raylet."""
    objects: int = 0
    """Port of its object manager."""
    head: bool = False

    def places(self, gpus_per_repeat: float) -> int:
        """Return how many repeats fit on it: each takes so many GPUs, a share of one, or one CPU core if none."""
        return int(self.gpus / gpus_per_repeat) if gpus_per_repeat else self.cpus


@dataclass(frozen=True)
class Answer:
    """What a function returned on a node, or an error message of one line."""

    value: Any = None
    error: str = ""
    late: bool = False
    """Whether it timed out."""


def alive() -> tuple[Node, ...]:
    """Return every node that Ray considers alive."""
    import ray

    return tuple(
        Node(
            node["NodeManagerHostname"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            node["NodeID"],
            node["NodeManagerAddress"],
            node["NodeManagerPort"],
            node["ObjectManagerPort"],
            "node:__internal_head__" in node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def missing_addresses(cluster: Sequence[Node]) -> list[str]:
    """Return the addresses in cluster.yaml of nodes that have not joined; none if this is not its cluster."""
    bootstrap = Path("~/ray_bootstrap_config.yaml").expanduser()  # `ray up` writes it
    if not bootstrap.exists():
        return []
    import yaml

    provider = yaml.safe_load(bootstrap.read_text())["provider"]
    joined = {node.address for node in cluster}
    if provider.get("head_ip") not in joined:
        return []
    return sorted(set(provider.get("worker_ips", ())) - joined)


def start(node: Node, function: Callable[..., Any], *arguments: Any, gpus: int = 0) -> Any:
    """Start a function on one node and no other; return Ray's reference to its result.

    The function's module must have been passed to `send`.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task = _remote(function).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=pinned, max_retries=0)
    return task.remote(*arguments)


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(function)


def wait_for(started: Mapping[Node, Any], limit: float) -> dict[Node, Answer]:
    """Collect the results of what `start` has started; cancel what has not finished after `limit` seconds."""
    import ray
    from ray.exceptions import RayError

    done: list[Any] = []
    if started:
        done, _ = ray.wait(list(started.values()), num_returns=len(started), timeout=limit)

    answers = {}
    for node, reference in started.items():
        if reference not in done:
            ray.cancel(reference, force=True)
            answers[node] = Answer(error=f"no answer in {limit:g} s", late=True)
            continue
        try:
            answers[node] = Answer(ray.get(reference))
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            answers[node] = Answer(error=" ".join(f"{type(cause).__name__}: {cause}".split())[:200])
    return answers


def send(*modules: Any) -> None:
    """Pickle these modules' functions by value, so that a node without Scrimp, or with an older one, can run them."""
    from ray import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(module)
