"""Errors that are for people: the command line prints their one line and exits with status 2."""


class UserError(Exception):
    """A mistake that its user can mend. The message is one line: what is wrong, where, and what to do."""


class Final(Exception):
    """What would fail in the same way again: such a repeat is not retried."""


class Diverged(Final):
    """Training has become useless: a loss that is not finite, or one that has exploded."""


class DamagedData(UserError, Final):
    """A file of the dataset is missing, or is not what was prepared."""


class TooLarge(UserError, Final):
    """The device has too little memory for what the recipe trains at once."""


class DamagedRecord(UserError):
    """A record on disk is not what was written there."""


class NoRoom(UserError):
    """A disk is full or read-only. With room there, the same goes on."""
