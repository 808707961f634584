"""Traffic to this machine and between the cluster's nodes never goes through a proxy."""

import os
import socket
from collections.abc import Iterable, MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY_VARIABLES = ("no_proxy", "NO_PROXY")
GRPC_VARIABLE = "no_grpc_proxy"
"""Where it is set, gRPC looks at no other."""


def host_of(address: str) -> str:
    """Return the host of an address such as `head:6379` or `http://head:8265`."""
    return urlsplit(address if "//" in address else f"//{address}").hostname or ""


def bypass(hosts: Iterable[str] = (), environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process, and those that it starts, reach loopback, this machine and `hosts` directly.

    What the user exempts stays exempt. Some libraries read the name in small letters, some in capitals, and a few
    ignore the one where the other is set: both get the union. gRPC's own variable is extended where it is set.
    """
    own = [*LOOPBACK, socket.gethostname(), *hosts]
    exempt = ",".join(environment.get(name, "") for name in NO_PROXY_VARIABLES).split(",")
    value = _join([*exempt, *own])
    for name in NO_PROXY_VARIABLES:
        environment[name] = value

    if GRPC_VARIABLE in environment:
        exempt_from_grpc = environment[GRPC_VARIABLE].split(",")
        environment[GRPC_VARIABLE] = _join([*exempt_from_grpc, *own])


def _join(entries: Iterable[str]) -> str:
    """Return the entries as one list, each once and none of them empty."""
    stripped = [entry.strip() for entry in entries]
    return ",".join(dict.fromkeys(filter(None, stripped)))
