"""Whether the nodes reach each other on the ports that Ray uses. Imports nothing but Python: it runs on any node."""

import asyncio
import contextlib
import random
import time

EXCHANGE_TIMEOUT_S = 6.0  # until all nodes listen, and have reached the ports of the others
CONNECT_TIMEOUT_S = 2.0
LISTENING_PORTS = 4  # some may be taken, though then a worker of Ray's answers there
EPHEMERAL_PORTS = (32768, 60999)  # from which Linux picks by default

Endpoint = tuple[str, list[int]]
"""An address, and ports of which one has to answer."""


def some(first: int, last: int) -> list[int]:
    """Return a few ports of a range of Ray's; zeros mean that the system picks them."""
    if not first:
        first, last = EPHEMERAL_PORTS
    return random.sample(range(first, last + 1), min(LISTENING_PORTS, last + 1 - first))


def exchange(own: Endpoint, others: list[Endpoint], peers: int, limit: float = EXCHANGE_TIMEOUT_S) -> list[int]:
    """Listen at one's own ports until so many peers have connected, and connect to the endpoints of the others.

    Returns the numbers of the endpoints that did not answer.
    """
    return asyncio.run(_exchange(own, others, peers, limit))


async def _exchange(own: Endpoint, others: list[Endpoint], peers: int, limit: float) -> list[int]:
    deadline = time.monotonic() + limit
    connected: set[str] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.add((await reader.readline()).decode())
        writer.close()

    servers = []
    for port in own[1]:
        with contextlib.suppress(OSError):
            servers.append(await asyncio.start_server(accept, own[0], port))

    reached = await asyncio.gather(*(_probe(f"{own}", endpoint, deadline) for endpoint in others))
    while servers and len(connected) < peers and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    for server in servers:
        server.close()
    return [number for number, is_reached in enumerate(reached) if not is_reached]


async def _probe(name: str, endpoint: Endpoint, deadline: float) -> bool:
    """Whether an endpoint answers in time; one that listens at several ports is sent the name of its peer."""
    address, numbers = endpoint
    while time.monotonic() < deadline:
        for port in numbers:
            with contextlib.suppress(OSError, TimeoutError):
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), CONNECT_TIMEOUT_S)
                writer.write(f"{name}\n".encode() if len(numbers) > 1 else b"")
                writer.close()
                return True
        await asyncio.sleep(0.1)
    return False
