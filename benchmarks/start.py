"""Time of the server from start to ready, and its resident memory then, with the embedded models or copies of one.

.venv-dev/bin/python benchmarks/start.py
.venv-dev/bin/python benchmarks/start.py --version build/bench/text/models/minilm/1 --copies 20

Copies are loaded without records of trials, then with these; beside each stands the time that reading and hashing all
files takes. Every graph of a copy has bytes of its own, so that a copy counts as another version.
CPU seconds are those of the server's process.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

SERVER = Path(__file__).parents[1] / ".venv/bin/attention-server"
RUNS = 7
MANIFEST = "manifest.json"
DOC_STRING = 6 << 3 | 2  # the tag of ONNX's ModelProto.doc_string; of a field that stands twice the last one counts


def start(*arguments: object) -> tuple[float, float]:
    """Return seconds to ready and MiB resident."""
    return started(*arguments)[:2]


def started(*arguments: object) -> tuple[float, float, float]:
    """Return seconds to ready, MiB resident and CPU seconds."""
    begin = time.perf_counter()
    command = [SERVER, "--rest-port", "0", "--grpc-port", "0", "--log-level", "warning", *arguments]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 # our own
        assert server.stdout is not None
        assert server.stdout.readline().startswith("ready ")
        seconds = time.perf_counter() - begin
        resident = Path(f"/proc/{server.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
        ticks = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        server.terminate()
    return seconds, int(resident) / 1024, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def copy(version: Path, target: Path, name: str) -> None:
    """Copy a version with a name in each graph, so that its bytes are those of another version."""
    target.mkdir(parents=True)
    manifest = (version / MANIFEST).read_text()
    for path in version.iterdir():
        content = path.read_bytes()
        if path.suffix == ".onnx":
            before = hashlib.sha256(content).hexdigest()
            content += bytes((DOC_STRING, len(name))) + name.encode()
            manifest = manifest.replace(before, hashlib.sha256(content).hexdigest())
        (target / path.name).write_bytes(content)
    (target / MANIFEST).write_text(manifest)


def measure_copies(version: Path, copies: int, runs: int) -> None:
    """Print the time to ready with copies of a version under other names, without and with records of trials."""
    with TemporaryDirectory(dir=version.parent) as folder:  # on the disk of the version
        models, records = Path(folder) / "models", Path(folder) / "records"
        for number in range(copies):
            copy(version, models / f"copy-{number:02}/1", f"copy {number}")
        for label, more in (("every version tried", ()), ("with --trial-records", ("--trial-records", records))):
            started("--models", models, *more)  # keeps the records
            seconds, sizes, cpu = zip(*(started("--models", models, *more) for _ in range(runs)), strict=True)
            begin, used = time.perf_counter(), time.process_time()
            for path in sorted(models.rglob("*")):
                if path.is_file():
                    hashlib.sha256(path.read_bytes())
            read, read_cpu = time.perf_counter() - begin, time.process_time() - used
            Console().print(
                f"{copies} copies, {label}: {statistics.median(seconds):.2f} s to ready, "
                f"{statistics.median(cpu):.2f} of CPU; "
                f"reading and hashing the files {read:.2f} s, {read_cpu:.2f} of CPU; {max(sizes):.0f} MiB resident"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", type=Path, help="the folder of a version to copy; the embedded models without")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    if options.version:
        measure_copies(options.version, options.copies, options.runs)
        return
    start()  # fills the file cache, and compiles Python files
    times, sizes = zip(*(start() for _ in range(options.runs)), strict=True)
    median, worst = statistics.median(times), max(times)
    count = options.runs
    Console().print(f"start to ready: {median:.2f} s (of {count}: at most {worst:.2f}); {max(sizes):.0f} MiB resident")


if __name__ == "__main__":
    main()
