"""Errors that speak to people. The command line prints the message and exits with the code; nothing else."""

from __future__ import annotations


class S2RError(Exception):
    """A failure whose message says what was found, what was expected and what to do. Exit code 1."""

    exit_code = 1


class UsageError(S2RError):
    """A wrong option, configuration or input place: nothing was started. Exit code 2."""

    exit_code = 2
