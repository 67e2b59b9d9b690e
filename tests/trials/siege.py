"""Attacks without a token on a server in a cgroup: `python -m tests.trials.siege --mib 512 2048`.

The server runs with its defaults in a cgroup (version 1 or 2) of so many MiB. Each attack runs for some seconds in a
process of its own, then all of memory at once, all floods, and all of both. Meanwhile liveness and a good caller from
another address are timed.
"""

import argparse
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from serving import Server, clean_env, made_repository, start_server

from tests.trials import scorecard
from tests.trials.strangers import FLOODS, MEMORY
from tests.trials.subject import Wrong

MIB = 2**20
BODY = b'{"query": [[1.0], [2.0]]}'


@dataclass
class Cgroup:
    """A cgroup of memory, whose limit this machine's kernel enforces."""

    folder: Path
    version: int

    @property
    def peak(self) -> int:
        """The most bytes since the start."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return int((self.folder / name).read_text())


@contextmanager
def cgroup(mib: int) -> Iterator[Cgroup]:
    """Make a cgroup of so many MiB. Needs root and a writable hierarchy."""
    root = Path("/sys/fs/cgroup")
    version = 2 if (root / "cgroup.controllers").exists() else 1
    folder = (root if version == 2 else root / "memory") / f"attention-{os.getpid()}-{mib}"
    folder.mkdir()
    try:
        limit = folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        limit.write_text(str(mib * MIB))
        yield Cgroup(folder, version)
    finally:
        with suppress(OSError):
            folder.rmdir()


@dataclass
class Watch:
    """Times requests, one after another, until it is stopped.

    Attributes:
        times: seconds of each.
        refused: how many were answered with 503 or 429.
    """

    address: str
    method: str
    path: str
    body: bytes | None = None
    times: list[float] = field(default_factory=list)
    refused: int = 0
    failed: list[str] = field(default_factory=list)

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            begun = time.monotonic()
            connection = http.client.HTTPConnection(self.address, timeout=30, source_address=("127.0.0.1", 0))
            try:
                connection.request(self.method, self.path, self.body)
                status = connection.getresponse().status
                if status in (429, 503):
                    self.refused += 1
                elif status != 200:
                    self.failed.append(str(status))
            except OSError as error:
                self.failed.append(repr(error))
            finally:
                connection.close()
            self.times.append(time.monotonic() - begun)
            stopping.wait(0.02)

    def figures(self) -> str:
        times = sorted(self.times)
        p50, p99 = (1e3 * times[int(len(times) * share)] for share in (0.5, 0.99))
        return f"p50 {p50:.0f} p99 {p99:.0f} max {1e3 * times[-1]:.0f} ms"


def besiege(server: Server, names: Sequence[str], seconds: float) -> tuple[Watch, Watch]:
    """Run attacks at once; return the times of liveness and of a good caller."""
    live, good = Watch(server.rest, "GET", "/healthz"), Watch(server.rest, "POST", "/v1/models/dot:attend", BODY)
    stopping = threading.Event()
    watches = [threading.Thread(target=each.run, args=(stopping,)) for each in (live, good)]
    command = [sys.executable, "-m", "tests.trials.strangers"]
    attackers = [subprocess.Popen([*command, name, server.rest, server.grpc, str(seconds)]) for name in names]
    for each in watches:
        each.start()
    for attacker in attackers:
        attacker.wait()
    stopping.set()
    for each in watches:
        each.join()
    return live, good


def siege(mib: int, attacks: Sequence[Sequence[str]], seconds: float, *arguments: object) -> dict[str, str]:
    """Besiege a server in a cgroup; return a line for each attack.

    Raises:
        Wrong: the server ended, or failed a good caller otherwise than by a refusal for a time.
    """
    lines: dict[str, str] = {}
    with TemporaryDirectory() as scratch, cgroup(mib) as group:
        (Path(scratch) / "dot").symlink_to(made_repository() / "dot")
        enter = f'echo $$ > {group.folder}/cgroup.procs; exec "$@"'
        command = ("sh", "-c", enter, "sh", Path(sys.executable).parents[2] / ".venv/bin/attention-server")
        with start_server(Path(scratch), *arguments, command=command, env=clean_env()) as server:
            base = group.peak / MIB
            for names in attacks:
                live, good = besiege(server, names, seconds)
                line = (
                    f"peak {group.peak / MIB:.0f} MiB (start {base:.0f}); liveness {live.figures()}; "
                    f"good caller {good.figures()}, {good.refused} of {len(good.times)} refused"
                )
                lines[" + ".join(names)] = line
                print(f"{mib} MiB  {' + '.join(names)}: {line}", flush=True)
                if server.process.poll() is not None:
                    raise Wrong(f"{names}: the server ended with {server.process.returncode}")
                if live.failed or good.failed:
                    raise Wrong(f"{names}: liveness {live.failed[:3]}, good caller {good.failed[:3]}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack")
    every: list[Callable[..., None]] = [*MEMORY, *FLOODS]
    parser.add_argument(
        "--only", nargs="+", default=[], choices=[each.__name__ for each in every], help="of the attacks"
    )
    chosen = parser.parse_args()
    attacks = [[each.__name__] for each in every if not chosen.only or each.__name__ in chosen.only]
    if not chosen.only:
        attacks += [[each.__name__ for each in together] for together in (MEMORY, FLOODS, every)]
    lines: dict[str, str] = {}
    for mib in chosen.mib:
        for name, line in siege(mib, attacks, chosen.seconds).items():
            lines[f"{mib} MiB: {name}"] = line
    if not chosen.only:
        sizes = " ".join(map(str, chosen.mib))
        scorecard.write("siege", f"python -m tests.trials.siege --mib {sizes} --seconds {chosen.seconds:g}", lines)


if __name__ == "__main__":
    main()
