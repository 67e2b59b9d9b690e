"""Errors by cause. `codecs.errors` maps each to its status codes.

AttentionServiceError
├── InvalidRequest      a tensor, mask, name or option that the model cannot take
├── NotFound            no such model, version or memory
├── TooLarge            the message, or its predicted work or answer, is over a limit
├── Unavailable         the same request may succeed later
│   ├── Full            the queue, or another bounded resource, is full
│   ├── Loading         models are still loading
│   ├── Stopping        the server is stopping
│   └── LimitReached    the caller is over its rate or its requests in flight
├── DeadlineExceeded    the deadline passed, queued or running
├── Cancelled           the caller cancelled or disconnected
├── Unauthenticated     no credentials, or unknown ones
├── PermissionDenied    the credentials lack a right
├── Misdirected         the Host header names another server
├── Unimplemented       not offered
└── BrokenProtocol      bytes that no client of gRPC sends
"""

from collections.abc import Sequence


def join_path(*parts: str) -> str:
    """Join the parts of a field's path, leaving out empty ones: ("", "query") -> "query"."""
    return ".".join(filter(None, parts))


class AttentionServiceError(Exception):
    """An error with a message for the caller.

    Attributes:
        message: the cause and, where there is one, the remedy.
        field: path of the field at fault, such as `inputs[0].query`; empty where no field is.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field


class InvalidRequest(AttentionServiceError):
    """A tensor, mask, name or option that the model cannot take.

    Attributes:
        others: the field and the message of each further sequence of the request that the model cannot take, as far
            as these are known.
    """

    def __init__(self, message: str, *, field: str = "", others: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message, field=field)
        self.others = others

    def of_part(self, part: int | None) -> "InvalidRequest":
        """Return a copy that names one sequence of a batch; None names none.

        A copy, since an error that is raised from itself references itself, and through its traceback every frame.
        """
        where = "" if part is None else f" (in sequence {part} of the batch, from 0)"
        return InvalidRequest(self.message + where, field=self.field)


class NotFound(AttentionServiceError):
    """There is no such model, version or memory."""


class TooLarge(AttentionServiceError):
    """The message, or its predicted work or answer, is over a limit; the message names a size that fits."""


class Unavailable(AttentionServiceError):
    """A temporary refusal; the same request may succeed after `retry_after` seconds."""

    retry_after = 1.0


class Full(Unavailable):
    """The queue, or another bounded resource, is full."""


class Loading(Unavailable):
    """The models are still loading."""


class Stopping(Unavailable):
    """The server is stopping and takes no new requests."""


class LimitReached(Unavailable):
    """The caller is over its rate or its number of requests in flight."""


class DeadlineExceeded(AttentionServiceError):
    """The deadline passed."""


class Cancelled(AttentionServiceError):
    """The caller cancelled or disconnected."""


class Unauthenticated(AttentionServiceError):
    """The request has no credentials, or unknown ones."""


class PermissionDenied(AttentionServiceError):
    """The credentials lack a right."""


class Misdirected(AttentionServiceError):
    """The request names a host that this server is not."""


class Unimplemented(AttentionServiceError):
    """The operation is not offered."""


class BrokenProtocol(AttentionServiceError):
    """The bytes break a rule of gRPC; its specification has INTERNAL for that."""
