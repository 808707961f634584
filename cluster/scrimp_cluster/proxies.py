"""Traffic to this machine and between the cluster's nodes never goes through a proxy."""

import os
import socket
from collections.abc import Iterable, MutableMapping
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NAMES = ("no_proxy", "NO_PROXY")


def host_of(address: str) -> str:
    """Return the host of an address such as `head:6379` or `http://head:8265`."""
    return urlsplit(address if "//" in address else f"//{address}").hostname or ""


def bypass(hosts: Iterable[str] = (), environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process, and those that it starts, reach loopback, this machine and `hosts` directly.

    What the user exempts stays exempt. Some libraries read the name in small letters, some the other, and where one
    is set a few ignore the other: both get the union.
    """
    own = socket.gethostname()
    exempt = [entry.strip() for name in NAMES for entry in environment.get(name, "").split(",") if entry.strip()]
    exempt.extend(host for host in (*LOOPBACK, own, *hosts) if host)
    value = ",".join(dict.fromkeys(exempt))
    for name in NAMES:
        environment[name] = value
