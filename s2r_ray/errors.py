"""Errors that speak to people. The command line prints the message and exits with the code; nothing else."""

from __future__ import annotations


class S2RError(Exception):
    """A failure whose message says what was found, what was expected and what to do. Exit code 1."""

    exit_code = 1


class StoreError(S2RError):
    """An object store did not do what it was asked to, however often: another try later may succeed. Exit code 1."""


class WorkersLostError(S2RError):
    """Workers died, or what they hold is not fit to go on: others may do the work that is left. Exit code 1."""


class TooManyErrors(S2RError):  # noqa: N818  # what there is too many of is its name
    """More of the data is wrong than `max_error_rate` allows. `table` shows reasons, counts and examples."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


class UsageError(S2RError):
    """A wrong option, configuration or input place: nothing was started. Exit code 2."""

    exit_code = 2
