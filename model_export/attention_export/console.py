"""The output of `attention-export`: results go to stdout, progress and errors to stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attention_proto.command import output_width
from rich.console import Console
from rich.table import Table

from attention_export.graphs import ExportFailure
from attention_export.manifest import ManifestError
from attention_export.training import BelowBar
from attention_export.verify import Mismatch

console = Console(stderr=True)


def print_line(line: str) -> None:
    """Print a line of progress as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_result(document: dict[str, Any], as_json: bool, table: Table | None = None) -> None:
    """Print a command's result on stdout: one JSON document, or the table where there is one."""
    if as_json:
        print(json.dumps(document))  # noqa: T201 # the command's answer
    elif table is not None:
        Console(width=output_width()).print(table)


def version_document(folder: Path) -> dict[str, Any]:
    """Return the place of a written version: its folder, model and number."""
    return {"folder": str(folder), "model": folder.parent.name, "version": int(folder.name)}


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn an error that a user can correct into a line on stderr and exit status 1."""
    try:
        yield
    except (BelowBar, ExportFailure, FileExistsError, ManifestError, Mismatch, OSError, ValueError) as error:
        console.print(f"attention-export: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
