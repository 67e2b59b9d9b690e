"""Inflation of compressed messages and bodies, within a limit."""

import zlib

from attention_server.errors import InvalidRequest, TooLarge

ENCODINGS = ("gzip", "deflate")
EITHER_HEADER = zlib.MAX_WBITS | 32  # zlib tells gzip's header from its own


def inflate(content: bytes, encoding: str, limit: int, what: str, field: str) -> bytes:
    """Inflate compressed bytes. Gzip of several members is refused: only the first would be read.

    Args:
        content: the bytes.
        encoding: `gzip` or `deflate`; empty or `identity` for bytes that are not compressed.
        limit: maximum number of inflated bytes.
        what: name of the content, for errors.
        field: field or header of the encoding, for errors.

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
        inflated = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the {what} is no {name}: {error}", field=field) from error
    if len(inflated) > limit:
        raise TooLarge(f"the {what} inflates to over {limit} bytes, the largest that is read")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"the {what} is no {name}: it ends too early or too late", field=field)
    return inflated
