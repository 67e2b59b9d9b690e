"""Detection of duplicate names in JSON objects, of which the parser silently keeps the last.

A hook for each parsed name would cost many times the parsing. Colons are counted instead: outside of strings the text
has one colon for each name. If the text has more colons than the parsed document has names and colons within strings,
a name was dropped. Counting bytes is cheap, and lists of numbers, the bulk of a large body, are skipped.
"""

import json
from collections import Counter
from typing import Any

PIECE = 64 * 1024  # bytes that are counted before a further thread may run


def count(text: bytes, byte: bytes) -> int:
    """Return how often a byte occurs. Further threads may run before the end of a long text."""
    return sum(text.count(byte, at, at + PIECE) for at in range(0, len(text), PIECE))


def has_duplicates(body: bytes, content: object) -> bool:
    """Return whether an object of a document may have a name twice.

    Args:
        body: valid JSON.
        content: the parsed body. Where each list that begins with a number has numbers only, the answer is exact;
            otherwise it may be true for a document without.
    """
    return count(body, b":") + _escaped(body) != _colons(content)


def duplicate_name(body: bytes, content: object) -> str | None:
    """Return a name, cut to 64 characters, that stands twice in one object.

    Args:
        body: valid JSON.
        content: the parsed body.

    Returns:
        None where there is none, or Python's own parser fails on the body.
    """
    return _searched(body) if has_duplicates(body, content) else None


def _escaped(body: bytes) -> int:
    """Return the number of colons written as an escape, which only the parsed document has."""
    if b"\\" not in body:
        return 0
    plain = body.replace(b"\\\\", b"--")  # every backslash that is left begins an escape
    return plain.count(b"\\u003a") + plain.count(b"\\u003A")


def _colons(content: object) -> int:
    """Return the number of colons that the text must have: one for each name, and those within strings."""
    total, waiting = 0, [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            total += len(each)
            waiting += each
            waiting += each.values()
        elif isinstance(each, str):
            total += each.count(":") if ":" in each else 0  # a search is faster than a count where there is none
        elif isinstance(each, list) and not _of_numbers(each):
            waiting += each
    return total


def _of_numbers(content: list[Any]) -> bool:
    first: object = content
    while isinstance(first, list) and first:
        first = first[0]
    return not isinstance(first, dict | str | type(None))


def _searched(body: bytes) -> str | None:
    found: list[str] = []

    def collect(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(name for name, _ in pairs)
        found.extend(name for name, count in counts.items() if count > 1)

    try:
        json.loads(body, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return None
    return found[0][:64] if found else None
