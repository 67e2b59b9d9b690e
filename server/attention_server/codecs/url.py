"""Model and version of a request, which both its URL and its body may name."""

from typing import TypeVar

from attention_proto.folder import VERSION

from attention_server.errors import InvalidRequest

T = TypeVar("T", str, int)


def url_or_body(name: str, url: T, body: T) -> T:
    """Return the value of a field in the URL or in the body; 0 and the empty string stand for an absent value.

    Raises:
        InvalidRequest: the two differ.
    """
    if url and body and url != body:
        raise InvalidRequest(f"is {body!r}, but the URL says {url!r}", field=name)
    return url or body


def parse_version(text: str) -> int:
    """Parse a model version.

    Raises:
        InvalidRequest: the text is not a positive integer.
    """
    if not VERSION.fullmatch(text):
        raise InvalidRequest(f"must be an integer above 0, not {text[:64]!r}", field="version")
    return int(text)
