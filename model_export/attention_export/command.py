"""Entry point of `attention-export`: a missing dependency is one line with the install command."""

from attention_proto.command import run_command


def main() -> None:
    """Run `attention-export`."""
    run_command(
        "attention-export",
        "attention_export.cli",
        extra="export",
        about="Trains attention blocks, exports them to ONNX and verifies them.",
    )
