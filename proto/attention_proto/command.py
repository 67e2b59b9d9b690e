"""Entry points of commands whose dependencies are extras of the package: a missing one is named in one line."""

import sys
from collections.abc import Callable
from importlib.metadata import version

PACKAGE = "attention-service"


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
