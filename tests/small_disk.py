"""A file system that a test can fill, empty and lock."""

import contextlib
import subprocess
from pathlib import Path


class SmallDisk:
    """A tmpfs of a few MiB, at `path`."""

    def __init__(self, path: Path, size: str = "4m") -> None:
        self.path, self._size = path, size
        self._ballast = path / ".ballast"

    def mount(self) -> bool:
        """Mount it; false where that is not allowed."""
        self.path.mkdir()
        return self._run("mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs") == 0

    def unmount(self) -> None:
        self._run("umount", "--lazy")

    def fill(self, spare: int = 0) -> None:
        """Leave so many bytes free, in pages of 4 KiB."""
        with self._ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            file.truncate(max(0, file.tell() - spare))

    def free(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()

    def lock(self, locked: bool = True) -> None:
        """Make it read-only, or writable again."""
        assert self._run("mount", "-o", f"remount,{'ro' if locked else 'rw'}") == 0

    def _run(self, *command: str) -> int:
        return subprocess.run([*command, str(self.path)], capture_output=True).returncode
