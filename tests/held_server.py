"""The server of `attention_server.app`, over graphs that run for as long as a test says: HELD_SERVER FILE [FLAG...].

While the file exists no run of a graph ends, and the first one that waits makes FILE.reached. No request is one of the
short ones, which the event loop computes: the loop would wait too.
"""

import sys
import threading
from pathlib import Path

from attention_server.app import main
from attention_server.inference.engine.protocol import Run
from attention_server.scheduling import scheduler
from engines import ObservedEngine

MOMENT = 0.01  # seconds between two looks


def hold(file: Path) -> None:
    """Wait until the file does not exist; tell by a second file that a run waits."""
    while file.exists():
        file.with_name(f"{file.name}.reached").touch()
        threading.Event().wait(MOMENT)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))

    def before(_: Run) -> None:
        hold(file)

    scheduler.SHORT_SECONDS = -1.0
    main(ObservedEngine(before))
