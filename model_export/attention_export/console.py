"""The output of `attention-export`: progress and errors go to stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from attention_export.graphs import ExportFailure
from attention_export.manifest import ManifestError
from attention_export.training import BelowBar
from attention_export.verify import Mismatch

console = Console(stderr=True)


def print_line(line: str) -> None:
    """Print a line of progress as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn an error that a user can correct into a line on stderr and exit status 1."""
    try:
        yield
    except (BelowBar, ExportFailure, FileExistsError, ManifestError, Mismatch, OSError, ValueError) as error:
        console.print(f"attention-export: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
