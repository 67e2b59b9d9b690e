"""Detection of duplicate names in JSON objects, of which the parser silently keeps the last.

A hook for each parsed name would cost many times the parsing. Colons are counted instead: outside of strings the text
has one colon for each name. If the text has more colons than the parsed document has names and colons within strings,
a name was dropped. Counting bytes is cheap, and lists of numbers, the bulk of a large body, are skipped.
"""

import json
from collections import Counter
from typing import Any

from attention_server.errors import InvalidRequest

NAMED_BYTES = 2**20  # the largest body in which the duplicate name is searched


def refuse_duplicates(body: bytes, content: object) -> None:
    """Refuse a body with a duplicate name.

    Args:
        body: valid JSON.
        content: the parsed and validated body: a list that begins with a number has numbers only.

    Raises:
        InvalidRequest: an object has a name twice.
    """
    if body.count(b":") + _escaped(body) == _colons(content):
        return
    name = _duplicate(body) if len(body) <= NAMED_BYTES else None
    raise InvalidRequest(
        "stands twice in one object" if name else "a name stands twice in one object", field=name or ""
    )


def _escaped(body: bytes) -> int:
    """Return the number of colons written as an escape, which only the parsed document has."""
    if b"\\" not in body:
        return 0
    plain = body.replace(b"\\\\", b"--")  # every backslash that is left begins an escape
    return plain.count(b"\\u003a") + plain.count(b"\\u003A")


def _colons(content: object) -> int:
    """Return the number of colons that the text must have: one for each name, and those within strings."""
    if isinstance(content, dict):
        return len(content) + sum(map(_colons, content)) + sum(map(_colons, content.values()))
    if isinstance(content, str):
        return content.count(":") if ":" in content else 0  # a search is faster than a count where there is none
    if isinstance(content, list) and not _of_numbers(content):
        return sum(map(_colons, content))
    return 0


def _of_numbers(content: list[Any]) -> bool:
    first: object = content
    while isinstance(first, list) and first:
        first = first[0]
    return not isinstance(first, dict | str | type(None))


def _duplicate(body: bytes) -> str | None:
    """Return a duplicate name; None if Python's own parser fails on the body."""
    found: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(name for name, _ in pairs)
        found.extend(name for name, count in counts.items() if count > 1)

    try:
        json.loads(body, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return None
    return found[0][:64] if found else None
