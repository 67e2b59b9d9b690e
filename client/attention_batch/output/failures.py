"""The kinds of failed rows in a dead-letter file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

MOST = 10  # kinds
_OWN = re.compile(r"'[^']*'|\"[^\"]*\"|-?\d[\d.e+-]*")  # parts of a reason that are those of one row


@dataclass
class FailureKind:
    """Failed rows with the same reason, but for quoted values, numbers and suggestions.

    Attributes:
        field: at fault.
        reason: of the first row.
        file: of the first row.
        row: its number in that file.
        rows: how many there are.
    """

    field: str
    reason: str
    file: str
    row: int
    rows: int = 0


def failure_kinds(errors: Path) -> list[FailureKind]:
    """Return the kinds of failed rows, by first row, at most `MOST`; none without a file."""
    found: dict[tuple[str, str], FailureKind] = {}
    if not errors.exists():
        return []
    with errors.open("rb") as lines:
        for line in lines:
            letter: dict[str, Any] = orjson.loads(line)
            cause = re.split("[;:]", letter["reason"], maxsplit=1)[0]  # behind it is the remedy
            key = _OWN.sub("", letter["field"]), _OWN.sub("", cause)
            if key not in found and len(found) < MOST:
                found[key] = FailureKind(letter["field"], letter["reason"], letter["file"], letter["row"])
            if key in found:
                found[key].rows += 1
    return list(found.values())
