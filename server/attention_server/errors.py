"""What can go wrong, by cause. An edge names the code; see `translate.errors` for the one table.

AttentionServiceError
├── InvalidRequest      the caller sent what this model cannot take
├── NotFound            no such model, version or memory
├── TooLarge            the message, or the work or answer it asks for, is over a limit
├── Unavailable         the same request may succeed later
│   ├── Full            the queue is, or what else has a bound
│   ├── Loading         the models are not all there yet
│   ├── Stopping        the server takes no more
│   └── LimitReached    this caller asks for more at once than it may
├── DeadlineExceeded    the caller's time ran out, queued or running
├── Cancelled           the caller has gone
├── Unauthenticated     no credentials, or nobody's
├── PermissionDenied    the credentials do not allow it
└── Unimplemented       not offered
"""


class AttentionServiceError(Exception):
    """Why a request has no answer, in words for its caller.

    Attributes:
        message: what is wrong and what would do.
        field: the path of the field at fault, such as `inputs[0].query`; empty when it is none.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field


class InvalidRequest(AttentionServiceError):
    """The caller sent a tensor, mask, name or option that the model cannot take."""

    def of_part(self, part: int | None) -> "InvalidRequest":
        """Return another that says the same of one of the sequences that were sent as one; None is none of them.

        Another, for an error that is raised from itself holds itself, and with its trace all that was there.
        """
        where = "" if part is None else f" (in sequence {part} of the batch, from 0)"
        return InvalidRequest(self.message + where, field=self.field)


class NotFound(AttentionServiceError):
    """There is no such model, version or memory."""


class TooLarge(AttentionServiceError):
    """The message, or the predicted work or answer, is over a limit; the text says what would fit."""


class Unavailable(AttentionServiceError):
    """Full, loading, stopping or refused on disk; the same request may succeed after `retry_after` seconds."""

    retry_after = 1.0


class Full(Unavailable):
    """There is no room for the request at this moment."""


class Loading(Unavailable):
    """The models are still loading."""


class Stopping(Unavailable):
    """The server takes no more requests."""


class LimitReached(Unavailable):
    """This caller has more requests in flight, or sends them faster, than it may."""


class DeadlineExceeded(AttentionServiceError):
    """The caller's time ran out."""


class Cancelled(AttentionServiceError):
    """The caller has gone."""


class Unauthenticated(AttentionServiceError):
    """The caller sent no credentials, or nobody's."""


class PermissionDenied(AttentionServiceError):
    """The caller's credentials do not allow it."""


class Unimplemented(AttentionServiceError):
    """Not offered here."""
