"""Inflation of compressed messages and bodies, within a limit."""

import zlib
from collections.abc import Callable
from typing import Any

from attention_server.errors import InvalidRequest, TooLarge

ENCODINGS = ("gzip", "deflate")
FED, PIECE = 64 * 1024, 1024 * 1024  # bytes that are inflated at once, and bytes of the result
EITHER_HEADER = zlib.MAX_WBITS | 32  # zlib tells gzip's header from its own


def inflate(
    content: bytes, encoding: str, limit: int, what: str, field: str, hold: Callable[[int], None] = lambda _: None
) -> bytes:
    """Inflate compressed bytes. Gzip of several members is refused: only the first would be read.

    Args:
        content: the bytes.
        encoding: `gzip` or `deflate`; empty or `identity` for bytes that are not compressed.
        limit: maximum number of inflated bytes.
        what: name of the content, for errors.
        field: field or header of the encoding, for errors.
        hold: called with the bytes of each inflated piece; an exception of it ends the inflation.

    Raises:
        InvalidRequest: the encoding is unknown, or the content is not of the encoding.
        TooLarge: the inflated bytes are over the limit; inflation stops there.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return content
    if name not in ENCODINGS:
        raise InvalidRequest(f"must be one of {', '.join(ENCODINGS)}, not {encoding[:64]!r}", field=field)
    stream = zlib.decompressobj(EITHER_HEADER)
    try:
        pieces, is_whole = _pieces(stream, content, limit, what, hold)
    except zlib.error as error:
        raise InvalidRequest(f"the {what} is no {name}: {error}", field=field) from error
    if not is_whole:
        raise InvalidRequest(f"the {what} is no {name}: it ends too early or too late", field=field)
    return b"".join(pieces)


def _pieces(
    stream: Any, content: bytes, limit: int, what: str, hold: Callable[[int], None]
) -> tuple[list[bytes], bool]:
    """Return the inflated bytes in pieces, and whether the content has an end and nothing behind it."""
    view, begin, size, left = memoryview(content), 0, 0, b""
    pieces: list[bytes] = []
    while not stream.eof:
        fed = left or view[begin : begin + FED]
        begin += 0 if left else len(fed)
        piece = stream.decompress(fed, PIECE)
        if not (fed or piece):
            return pieces, False
        left = stream.unconsumed_tail
        size += len(piece)
        if size > limit:
            raise TooLarge(f"the {what} inflates to over {limit} bytes, the largest that is read")
        hold(len(piece))
        pieces.append(piece)
    return pieces, begin == len(view) and not stream.unused_data
