"""The command `attention-export`, which tells what to install where a dependency is missing."""

from attention_proto.command import run_command


def main() -> None:
    """Run `attention-export`."""
    run_command(
        "attention-export",
        "attention_export.cli",
        extra="export",
        about="Trains attention blocks, exports them to ONNX and verifies them.",
    )
