"""The commands `attention-server` and `attention-token`: a missing dependency is named in one line."""

from attention_proto.command import run_command


def main() -> None:
    """Run `attention-server`."""
    run_command(
        "attention-server",
        "attention_server.app",
        extra="server",
        about="Serves attention, its outputs and its weights, over gRPC and REST.",
        show_help=_show_server_help,
    )


def token() -> None:
    """Run `attention-token`."""
    run_command(
        "attention-token",
        "attention_server.auth.new_token",
        extra="server",
        about="Makes a token for a caller: the line of the token file goes to stdout, the token to stderr.",
    )


def _show_server_help() -> None:
    # Imported here: the help of every setting needs pydantic, and no engine, event loop or HTTP library.
    from pydantic_settings import CliApp  # noqa: PLC0415

    from attention_server.settings import Settings  # noqa: PLC0415

    CliApp.run(Settings)
