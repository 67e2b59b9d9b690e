"""The errors of gRPC over HTTP/2.

LibraryError            libnghttp2 is missing or too old
ConnectionBroken        the peer does not speak HTTP/2; its connection ends
CallError               one call ends with an error status
├── InvalidMessage      the bytes are not messages of gRPC
├── BrokenProtocol      the bytes break a rule of gRPC that its clients keep
├── UnknownEncoding     the messages are compressed by an encoding that is not supported
├── MessageTooLarge     a message is over the limit
├── HeadersTooLarge     the request's headers are over the limit
├── Stalled             the peer has begun a message, and hardly a byte of it has come
├── DeadlineExceeded    the call's timeout has passed
├── Cancelled           the peer has cancelled the call, or closed the connection
├── ConnectionRetired   the connection is as old as it may be
└── ServerStopping      the server stops
"""


class LibraryError(ImportError):
    """libnghttp2 is missing or too old; the message names the package to install."""


class ConnectionBroken(Exception):
    """The peer does not speak HTTP/2, or the session has ended."""


class CallError(Exception):
    """The reason why a call ends with an error status.

    Attributes:
        message: the reason, in words for the caller.
        field: the header at fault, or "".
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.field = field


class InvalidMessage(CallError):
    """The request's bytes are not messages of gRPC, or not as many as the method takes."""


class BrokenProtocol(CallError):
    """The request's bytes break a rule of gRPC that every client of it keeps."""


class UnknownEncoding(CallError):
    """The request's messages are compressed by an encoding that is not supported."""


class MessageTooLarge(CallError):
    """A message is larger than the limit."""


class HeadersTooLarge(CallError):
    """The request has too many headers, or too large ones; the headers over the limit were dropped."""


class Stalled(CallError):
    """The peer has begun a message and not ended it, and hardly a byte has come for some time."""


class DeadlineExceeded(CallError):
    """The timeout that the request's headers state has passed."""


class Cancelled(CallError):
    """The peer has cancelled the call, or closed its connection."""


class ServerStopping(CallError):
    """The server stops before the call has an answer."""


class ConnectionRetired(CallError):
    """The connection is as old as it may be, and the call did not end within the grace; the caller may call again."""
