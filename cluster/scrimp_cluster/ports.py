"""Whether the nodes reach each other on the ports that Ray uses. Imports nothing but Python: it runs on any node."""

import asyncio
import contextlib
import random
import time

LIMIT = 6.0  # seconds in which nodes have to be at their ports, and reach those of the others
KNOCK = 2.0  # seconds for one connection
SEVERAL = 4  # ports to listen on: some may be taken, though then a worker of Ray's answers there
PICKED_BY_LINUX = (32768, 60999)

Door = tuple[str, list[int]]
"""An address, and ports of which one has to answer."""


def some(first: int, last: int) -> list[int]:
    """Return a few ports of a range of Ray's; zeros mean that the system picks them."""
    first, last = (first, last) if first else PICKED_BY_LINUX
    return random.sample(range(first, last + 1), min(SEVERAL, last + 1 - first))


def meet(mine: Door, doors: list[Door], guests: int, limit: float = LIMIT) -> list[int]:
    """Listen at one's own ports until so many guests have come, and knock at others' doors.

    Returns the numbers of the doors that did not open.
    """
    return asyncio.run(_meet(mine, doors, guests, limit))


async def _meet(mine: Door, doors: list[Door], guests: int, limit: float) -> list[int]:
    deadline = time.monotonic() + limit
    came: set[str] = set()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.add((await reader.readline()).decode())
        writer.close()

    servers = []
    for port in mine[1]:
        with contextlib.suppress(OSError):
            servers.append(await asyncio.start_server(welcome, mine[0], port))
    opened = await asyncio.gather(*(_knock(f"{mine}", door, deadline) for door in doors))
    while servers and len(came) < guests and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    for server in servers:
        server.close()
    return [number for number, is_open in enumerate(opened) if not is_open]


async def _knock(name: str, door: Door, deadline: float) -> bool:
    """Whether a door opens in time; who listens at several ports is told who came."""
    address, numbers = door
    while time.monotonic() < deadline:
        for port in numbers:
            with contextlib.suppress(OSError, TimeoutError):
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), KNOCK)
                writer.write(f"{name}\n".encode() if len(numbers) > 1 else b"")
                writer.close()
                return True
        await asyncio.sleep(0.1)
    return False
