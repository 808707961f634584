"""Errors that are for people: the command line prints their one line and exits with status 2."""


def printable(text: str) -> str:
    """Return a text with control characters written out: the name of a file must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """A mistake that its user can mend. The message is one line: what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """Return the message, safe to print."""
        return printable(super().__str__())


class NonRetryable(Exception):
    """What would fail in the same way again: such a repeat is not retried."""


class Diverged(NonRetryable):
    """Training has become useless: a loss that is not finite, or one that has exploded."""


class DamagedData(UserError, NonRetryable):
    """A file of the dataset is missing, or is not what was prepared."""


class DeviceOutOfMemory(UserError, NonRetryable):
    """The device has too little memory for what the recipe trains at once."""


class DamagedRecord(UserError):
    """A record on disk is not what was written there."""


class DiskFull(UserError):
    """A disk is full or read-only. With room there, the same goes on."""
