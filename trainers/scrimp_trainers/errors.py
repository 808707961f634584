"""Errors that are for people: the command line prints their one line and exits with status 2."""


class UserError(Exception):
    """A mistake that its user can mend. The message is one line: what is wrong, where, and what to do."""


class Diverged(Exception):
    """Training has become useless: a loss that is not finite, or one that has exploded.

    Training the same seed again would fail in the same way, so such a repeat is not retried.
    """
