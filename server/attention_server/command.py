"""The commands `attention-server` and `attention-token`: a missing dependency is named in one line."""

import sys
from collections.abc import Callable

from attention_proto.command import run_command


def main() -> None:
    """Run the command `attention-server` with the arguments of the process; a missing package ends it with status 1."""
    if sys.argv[1:2] == ["doctor"]:
        from attention_server.doctor import main as examine  # noqa: PLC0415 # reads the machine

        examine(sys.argv[2:])
        return
    run_command(
        "attention-server",
        _load_server,
        extra="server",
        about="Serves attention, its outputs and its weights, over gRPC and REST.",
        show_help=_show_server_help,
    )


def token() -> None:
    """Run the command `attention-token` with the arguments of the process; a missing package ends it with status 1."""
    run_command(
        "attention-token",
        _load_token,
        extra="server",
        about="Makes a token for a caller: the line of the token file goes to stdout, the token to stderr.",
    )


def _load_server() -> Callable[[], object]:
    from attention_server.app import main as run  # noqa: PLC0415 # needs the extra

    return run


def _load_token() -> Callable[[], object]:
    from attention_server.auth.new_token import main as run  # noqa: PLC0415 # needs the extra

    return run


def _show_server_help() -> None:
    # Imported here: the help of every setting needs pydantic, and no engine, event loop or HTTP library.
    from pydantic_settings import CliApp  # noqa: PLC0415

    from attention_server.settings import settings_of_this_machine  # noqa: PLC0415

    CliApp.run(settings_of_this_machine())
