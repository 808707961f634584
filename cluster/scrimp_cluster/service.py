"""MLflow's server on the head as a service: `scrimp ui`, which systemd keeps alive."""

import os
import subprocess
from pathlib import Path

UNIT = "scrimp-mlflow"
UNIT_TEMPLATE = Path(__file__).with_name("mlflow.service")


def unit(program: Path, storage: Path) -> str:
    """Return the unit that runs `scrimp ui` for a storage folder."""
    command = " ".join(_quoted(part) for part in (str(program), "ui", "--storage", str(storage)))
    return UNIT_TEMPLATE.read_text().replace("{command}", command)


def install(program: Path, storage: Path) -> str:
    """Install the unit for this user, start it, and enable it at boot; return an error message, empty if all went well.

    A second call replaces what the first one installed.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    file = config / "systemd" / "user" / f"{UNIT}.service"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(unit(program, storage))
    except OSError as error:
        return f"{file}: {error.strerror}"

    for command in (
        ["systemctl", "--user", "daemon-reload"],
        ["systemctl", "--user", "enable", UNIT],
        ["systemctl", "--user", "restart", UNIT],
        ["loginctl", "enable-linger"],  # else it would end when the user logs out
    ):
        if error := _run(command):
            return f"`{' '.join(command)}`: {error}"
    return ""


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "not there"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1]


def _quoted(word: str) -> str:
    """Write a word so that systemd reads it as it is."""
    for special, written in {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"}.items():
        word = word.replace(special, written)
    return f'"{word}"'
