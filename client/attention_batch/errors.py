"""The errors that end a run, and the command's exit status for each.

ScoringError
├── Refused         the run cannot do its job as it is given
├── Stopped         a later run with the same command resumes this one
└── TooManyErrors   more rows failed than the run may lose
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """The command's exit status."""

    COMPLETE = 0
    REFUSED = 1
    WITH_FAILED_ROWS = 3
    STOPPED = 4
    TOO_MANY_ERRORS = 5


class ScoringError(Exception):
    """A run cannot begin or go on; the message gives the reason and the remedy.

    Attributes:
        exit_status: of the command.
    """

    exit_status = ExitStatus.REFUSED


class Refused(ScoringError):
    """The job cannot be done as it is: its input, model or options, or an earlier run of its output, are at fault."""


class Stopped(ScoringError):
    """The run stopped between two shards; the same command resumes it."""

    exit_status = ExitStatus.STOPPED


class TooManyErrors(ScoringError):
    """More rows failed than the run may lose."""

    exit_status = ExitStatus.TOO_MANY_ERRORS
