"""Entry point of `attention-export`: a missing dependency is one line with the install command."""

from collections.abc import Callable

from attention_proto.command import run_command


def main() -> None:
    """Run `attention-export`."""
    run_command(
        "attention-export",
        _load_main,
        extra="export",
        about="Trains attention blocks, exports them to ONNX and verifies them.",
    )


def _load_main() -> Callable[[], object]:
    from attention_export.cli import main as run  # noqa: PLC0415 # needs the extra

    return run
