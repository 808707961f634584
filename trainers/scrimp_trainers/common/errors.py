"""Errors for the user: the command line prints them as one line and exits with status 2."""


def printable(text: str) -> str:
    """Escape control characters, so that a file name cannot send commands to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """Return the message, safe to print."""
        return printable(super().__str__())


class NonRetryable(Exception):
    """A failure that would happen again in the same way: the repeat is not retried."""


class Diverged(NonRetryable):
    """Training has diverged: the loss is not finite or has exploded."""


class DamagedData(UserError, NonRetryable):
    """A file of the dataset is missing or differs from what was prepared."""


class DeviceOutOfMemory(UserError, NonRetryable):
    """The device has too little memory for the images that the recipe trains at once."""


class DamagedRecord(UserError):
    """A record on disk differs from what was written."""


class DiskFull(UserError):
    """A disk is full or read-only. The operation can be repeated once there is free space."""
