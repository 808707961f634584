"""Traffic to this machine and between the cluster's nodes never goes through a proxy."""

import os
import socket
from collections.abc import Iterable, MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY_VARIABLES = ("no_proxy", "NO_PROXY")


def host_of(address: str) -> str:
    """Return the host of an address such as `head:6379` or `http://head:8265`."""
    return urlsplit(address if "//" in address else f"//{address}").hostname or ""


def bypass(hosts: Iterable[str] = (), environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process, and those that it starts, reach loopback, this machine and `hosts` directly.

    What the user exempts stays exempt. Some libraries read the name in small letters, some in capitals, and a few
    ignore the one where the other is set: both get the union.
    """
    exempt = ",".join(environment.get(name, "") for name in NO_PROXY_VARIABLES).split(",")
    exempt += [*LOOPBACK, socket.gethostname(), *hosts]
    stripped = [entry.strip() for entry in exempt]
    value = ",".join(dict.fromkeys(filter(None, stripped)))
    for name in NO_PROXY_VARIABLES:
        environment[name] = value
