"""A proxy that notes what it is asked for, and serves nothing."""

import contextlib
import socket
import threading
from collections.abc import Iterator

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@contextlib.contextmanager
def recording_proxy() -> Iterator[tuple[dict[str, str], list[bytes]]]:
    """Give the variables that name it for everything, and a list that gets the first line of each request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asked: list[bytes] = []

        def note() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the test is over
                    return
                with connection:
                    asked.append(connection.recv(1024).split(b"\r\n")[0])

        threading.Thread(target=note, daemon=True).start()
        capitals = [name.upper() for name in VARIABLES]
        yield dict.fromkeys([*VARIABLES, *capitals], address), asked
        listener.shutdown(socket.SHUT_RDWR)
