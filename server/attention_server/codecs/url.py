"""What a URL says of a request, beside what its body says."""

from typing import TypeVar

from attention_proto.folder import VERSION

from attention_server.errors import InvalidRequest

T = TypeVar("T", str, int)


def agreed(name: str, url: T, document: T) -> T:
    """Return what the URL or the document says; what is 0 or empty says nothing.

    Raises:
        InvalidRequest: they contradict each other.
    """
    if url and document and url != document:
        raise InvalidRequest(f"is {document!r}, but the URL says {url!r}", field=name)
    return url or document


def to_version(text: str) -> int:
    """Read a version.

    Raises:
        InvalidRequest: it is none.
    """
    if not VERSION.fullmatch(text):
        raise InvalidRequest(f"must be an integer above 0, not {text[:64]!r}", field="version")
    return int(text)
