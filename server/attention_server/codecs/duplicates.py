"""Names that stand twice in one object of JSON. The parser keeps the last without a word; here they are refused.

Looking at each name as it is read would cost many times the parsing. Instead the colons are counted: outside of strings
there is one a name in the text, and one a name in what was parsed, unless a name was dropped. To count bytes costs next
to nothing; numbers, of which a large body consists, are not looked at.
"""

import json
from collections import Counter
from typing import Any

from attention_server.errors import InvalidRequest

COLON = ord(":")
BLOCK = 2**16  # bytes, that stay in a cache
NAMED_BYTES = 2**20  # in a body up to here, the name is searched for


def refuse_duplicates(body: bytes, content: object) -> None:
    """Refuse a body of which names were dropped.

    Args:
        body: valid JSON.
        content: what was parsed of it, and is understood: a list that begins with a number holds numbers only.

    Raises:
        InvalidRequest: a name stands twice in one object.
    """
    if body.count(b":") + _escaped(body) == _colons(content):
        return
    name = _duplicate(body) if len(body) <= NAMED_BYTES else None
    raise InvalidRequest(
        "stands twice in one object" if name else "a name stands twice in one object", field=name or ""
    )


def _escaped(body: bytes) -> int:
    """Return how many colons are written as an escape; they are colons only when parsed."""
    if b"\\" not in body:
        return 0
    plain = body.replace(b"\\\\", b"--")  # of what is left, each backslash begins an escape
    return plain.count(b"\\u003a") + plain.count(b"\\u003A")


def _colons(content: object) -> int:
    """Return how many colons the text must have: one a name, and those within strings."""
    if isinstance(content, dict):
        return len(content) + sum(map(_colons, content)) + sum(map(_colons, content.values()))
    if isinstance(content, str):
        return content.count(":") if ":" in content else 0  # to find none is faster than to count none
    if isinstance(content, list) and not _of_numbers(content):
        return sum(map(_colons, content))
    return 0


def _of_numbers(content: list[Any]) -> bool:
    first: object = content
    while isinstance(first, list) and first:
        first = first[0]
    return not isinstance(first, dict | str | type(None))


def _duplicate(body: bytes) -> str | None:
    """Return a name that stands twice; None if that is in what Python's own parser does not go through."""
    found: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(name for name, _ in pairs)
        found.extend(name for name, count in counts.items() if count > 1)

    try:
        json.loads(body, object_pairs_hook=look)
    except (ValueError, RecursionError):
        return None
    return found[0][:64] if found else None
