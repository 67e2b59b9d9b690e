"""The errors of the client, and the cause of each.

    AttentionError
    ├── InvalidRequest      the request cannot be answered as it is; `field` names the part (also a ValueError)
    ├── NotFound            the model, version or memory does not exist (also a LookupError)
    ├── TooLarge            the message, the work or the answer is over a limit
    ├── Unavailable         no server answers, or the server is full or stopping; `retry_after`
    ├── DeadlineExceeded    no answer within the timeout (also a TimeoutError)
    ├── Unauthenticated     no credentials, or bad ones
    ├── PermissionDenied    the credentials do not allow the call
    ├── Unimplemented       the server does not offer the method
    ├── InternalError       a fault of the server
    └── NotRequested        the request's `outputs` left out the part of the result that is read (also a KeyError and
                            an AttributeError)

`attention_client.wire.status` makes the errors from the codes of gRPC.
"""


class AttentionError(Exception):
    """Any failure of a call.

    Attributes:
        message: the cause, and the values that are allowed.
        field: the part of the request, as `inputs[0].query`; None when the error is about no single part.
        request_id: the request's id in the server's log; None when the server sent none.
    """

    def __init__(self, message: str, *, field: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidRequest(AttentionError, ValueError):
    """The caller sent a tensor, text, mask, name or option that the model cannot take.

    Attributes:
        violations: field and message of each fault that the server named, this one first; a request of many sequences
            may have more faults than these.
    """

    violations: tuple[tuple[str, str], ...] = ()


class NotFound(AttentionError, LookupError):
    """The server has no such model, version or memory."""


class TooLarge(AttentionError):
    """The message, or the work or answer it asks for, is over a limit."""


class Unavailable(AttentionError):
    """No server answers at the address, or the server is full, starting or stopping; retries did not help.

    Attributes:
        retry_after: seconds to wait before the next attempt; None when the server named no time.
    """

    retry_after: float | None = None


class DeadlineExceeded(AttentionError, TimeoutError):
    """No answer came within the timeout."""


class Unauthenticated(AttentionError):
    """The call carried no credentials, or bad ones."""


class PermissionDenied(AttentionError):
    """The credentials do not allow the call."""


class Unimplemented(AttentionError):
    """The server does not offer this method."""


class InternalError(AttentionError):
    """The server failed; its log has the cause under `request_id`."""


class NotRequested(AttentionError, KeyError, AttributeError):
    """The result does not hold this output: name it among the request's `outputs`."""
