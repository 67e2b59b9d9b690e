"""Entry points of commands whose dependencies are extras of the package: a missing one is named in one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

PACKAGE = "attention-service"
PIPE_WIDTH = 200  # columns of text that no terminal shows
TRACE = "ATTENTION_TRACE"


def output_width() -> int | None:
    """Return the width of text on stdout: 200 columns in a pipe or a file; None where a terminal or COLUMNS says it."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH


def widen_help() -> None:
    """Give the help of a command of typer the width of the text on stdout; call it before typer is imported."""
    if width := output_width():
        os.environ.setdefault("TERMINAL_WIDTH", str(width))


@contextmanager
def errors_on_one_line(name: str) -> Iterator[None]:
    """Print an unexpected exception as one line, and exit with status 1; with ATTENTION_TRACE=1 raise it.

    Args:
        name: name of the command.
    """
    try:
        yield
    except OSError as error:
        if os.environ.get(TRACE):
            raise
        sys.exit(f"{name}: {error}")
    except Exception as error:
        if os.environ.get(TRACE):
            raise
        sys.exit(f"{name}: unexpected {type(error).__name__}: {error} (with {TRACE}=1 the command shows where)")


def run_command(
    name: str,
    load_main: Callable[[], Callable[[], object]],
    *,
    extra: str,
    about: str,
    show_help: Callable[[], object] | None = None,
) -> None:
    """Import a command's module and call its `main`. `--help` and `--version` work without the extra.

    Args:
        name: name of the command.
        load_main: imports the command's module and returns its `main`.
        extra: extra of the package that has the command's dependencies.
        about: one sentence for `--help`, where a dependency is missing.
        show_help: prints the full help with fewer dependencies than `main`, and exits; None to call `main` for it.

    Raises:
        SystemExit: a dependency is missing (status 1), or that of the command.
    """
    if sys.argv[-1] == "--version":  # with a number behind it, it is the model's version, an option of a subcommand
        sys.stdout.write(f"{name} {version(PACKAGE)}\n")
        return
    wants_help = not {"-h", "--help"}.isdisjoint(sys.argv[1:])
    try:
        if wants_help and show_help:
            show_help()
        main = load_main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("attention_"):  # a fault of this package
            raise
        remedy = f"needs {missing}: pip install '{PACKAGE}[{extra}]'"
        if wants_help:
            sys.stdout.write(f"usage: {name} [OPTIONS]\n\n{about}\n\nThe command {remedy}\n")
            return
        sys.exit(f"{name} {remedy}")
    main()
