"""Entry point of `attention-export`: a missing dependency is one line with the install command."""

from collections.abc import Callable

from attention_proto.command import errors_on_one_line, run_command, widen_help


def main() -> None:
    """Run `attention-export`."""
    widen_help()
    with errors_on_one_line("attention-export"):
        run_command(
            "attention-export",
            _load_main,
            extra="export",
            about="Trains attention blocks, exports them to ONNX and verifies them.",
        )


def _load_main() -> Callable[[], object]:
    from attention_export.cli import main as run  # noqa: PLC0415 # needs the extra

    return run
