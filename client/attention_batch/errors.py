"""Why a run ends before its end; `exit_status` is what the command says of it."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a run ended, for who started it."""

    COMPLETE = 0
    REFUSED = 1
    WITH_FAILED_ROWS = 3
    STOPPED = 4
    TOO_MANY_ERRORS = 5


class ScoringError(Exception):
    """A run cannot begin or go on; the message says why and what would do.

    Attributes:
        exit_status: of the command.
    """

    exit_status = ExitStatus.REFUSED


class Refused(ScoringError):
    """What was asked for cannot be done as it is: an input, a model, an option, or what an earlier run left."""


class Stopped(ScoringError):
    """The run stopped between two shards; the same command goes on from there."""

    exit_status = ExitStatus.STOPPED


class TooManyErrors(ScoringError):
    """More rows failed than the run may lose."""

    exit_status = ExitStatus.TOO_MANY_ERRORS
