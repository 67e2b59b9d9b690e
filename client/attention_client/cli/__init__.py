"""`attention-client`: ask an Attention Service from a terminal.

The commands need the extra `cli`. Without it `--version` and `--help` work; a command names the package to install.
"""

import sys

from attention_proto.command import errors_on_one_line, widen_help

_USAGE = """\
Usage: attention-client [OPTIONS] COMMAND [ARGS]...

  Ask an Attention Service.

Commands: attend, generate, models, plot, score, translate

"""


def main() -> None:
    """Run the command."""
    if sys.argv[1:] == ["--version"]:
        from attention_client import __version__  # noqa: PLC0415  # reads the package's metadata

        sys.stdout.write(f"attention-client {__version__}\n")
        return
    widen_help()
    try:
        from attention_client.cli.commands import app  # noqa: PLC0415  # needs the extra
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("attention_"):
            raise
        if sys.argv[1:] == ["--help"]:
            sys.stdout.write(f"{_USAGE}They need {missing.name}: pip install 'attention-service[cli]'\n")
            return
        sys.exit(f"attention-client needs {missing.name}: pip install 'attention-service[cli]'")
    with errors_on_one_line("attention-client"):
        app()
