"""Time of the server from start to ready, and its resident memory then, with the embedded models.

.venv-dev/bin/python benchmarks/start.py
"""

import statistics
import subprocess
import time
from pathlib import Path

from rich.console import Console

SERVER = Path(__file__).parents[1] / ".venv/bin/attention-server"
RUNS = 7


def start() -> tuple[float, float]:
    """Return seconds to ready and MiB resident."""
    begin = time.perf_counter()
    command = [SERVER, "--rest-port", "0", "--grpc-port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 # our own
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready ")
        seconds = time.perf_counter() - begin
        resident = Path(f"/proc/{server.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
        server.terminate()
    return seconds, int(resident) / 1024


def main() -> None:
    start()  # fills the file cache, and compiles Python files
    times, sizes = zip(*(start() for _ in range(RUNS)), strict=True)
    median, worst = statistics.median(times), max(times)
    Console().print(f"start to ready: {median:.2f} s (of {RUNS}: at most {worst:.2f}); {max(sizes):.0f} MiB resident")


if __name__ == "__main__":
    main()
