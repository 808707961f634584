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

    def places(self, gpus_per_repeat: int) -> int:
        """Return how many repeats fit on it: each takes so many GPUs, or one CPU core if none."""
        return self.gpus // gpus_per_repeat if gpus_per_repeat else self.cpus


@dataclass(frozen=True)
class Answer:
    """What a function returned on a node, or in one line why it did not."""

    value: Any = None
    error: str = ""
    late: bool = False
    """Whether it was given up because it took too long."""


def alive() -> tuple[Node, ...]:
    """Every node that Ray holds for alive."""
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


def awaited(cluster: Sequence[Node]) -> list[str]:
    """Return the addresses of the nodes that cluster.yaml names, on the head that it names, and that are not there."""
    bootstrap = Path("~/ray_bootstrap_config.yaml").expanduser()  # `ray up` brings it
    if not bootstrap.exists():
        return []
    import yaml

    provider, here = yaml.safe_load(bootstrap.read_text())["provider"], {node.address for node in cluster}
    return sorted(set(provider.get("worker_ips", ())) - here) if provider.get("head_ip") in here else []


def start(node: Node, function: Callable[..., Any], *arguments: Any, gpus: int = 0) -> Any:
    """Start a function on one node and nowhere else; returns Ray's reference to what it will return.

    The function's module must be one that `send` has been given.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
    task = _remote(function).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=pinned, max_retries=0)
    return task.remote(*arguments)


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(function)


def wait_for(asked: Mapping[Node, Any], limit: float) -> dict[Node, Answer]:
    """Collect what `start` has started, all of it within so many seconds; what is not done by then is given up."""
    import ray
    from ray.exceptions import RayError

    done = ray.wait(list(asked.values()), num_returns=len(asked), timeout=limit)[0] if asked else []
    answers = {}
    for node, reference in asked.items():
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
    """Let these modules' functions travel whole, so that a node without Scrimp, or with an older one, can run them."""
    from ray import cloudpickle

    for module in modules:
        cloudpickle.register_pickle_by_value(module)
