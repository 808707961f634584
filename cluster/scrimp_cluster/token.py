"""Ray's token: whoever has it can run code on the cluster, so nobody else may read its file."""

import contextlib
import os
import secrets
from pathlib import Path

from scrimp_cluster.facts import token_file


def ensure_token() -> None:
    """Create Ray's token if Ray is going to need one and there is none; make the file private, whoever created it.

    A Ray that starts on one machine creates the token by itself, but with the umask's mode, which lets others read it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    file = token_file()
    if not file.exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        _make(file)
    with contextlib.suppress(OSError):  # somebody else's file, or a file system without modes
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _make(file: Path) -> None:
    """Write a new token; if several processes do so at the same time, the first one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(handle, "w") as writer:
            writer.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()
