"""The server of `attention_server.app`, over graphs that run for as long as a test says: HELD_SERVER FILE [FLAG...].

While the file exists no run of a graph ends, and the first one that waits makes FILE.reached; without it each takes a
hundredth of a second and more, so that no request is one of the short ones, which the loop computes.
"""

import sys
import threading
from pathlib import Path

from attention_server.app import main
from attention_server.inference.engine.protocol import Run
from engines import ObservedEngine

LEAST_SECONDS = 0.01


def hold(file: Path) -> None:
    """Wait for a moment, and then until the file does not exist; tell by a second file that a run waits."""
    threading.Event().wait(LEAST_SECONDS)
    while file.exists():
        file.with_name(f"{file.name}.reached").touch()
        threading.Event().wait(LEAST_SECONDS)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))

    def before(_: Run) -> None:
        hold(file)

    main(ObservedEngine(before))
