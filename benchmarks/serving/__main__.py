"""Comparison of the service, the same graphs in process, mosec, Triton and MLServer under the same loads, in one run.

    make bench                  # everything; writes docs/benchmarks.md and docs/figures/benchmarks.svg
    make bench BENCH=--quick    # a moment of each measurement; writes build/bench/quick/

The server runs alone on core 0, the load generator on core 1. Contenders take turns in rounds, since the speed of a
machine drifts. A peer that cannot be installed or started is left out, and the document gives the reason. Results are
saved after each measurement.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from rich.console import Console

from benchmarks import minilm
from benchmarks.serving import environments, figure, machine, plan, reference, report, servers
from benchmarks.serving.clients.loop import Load
from benchmarks.serving.environments import OWN, ROOT
from benchmarks.serving.plan import Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.servers import Server, ServerFailed
from benchmarks.start import RUNS, start

DOCUMENT = ROOT / "docs/benchmarks.md"
SECONDS_TO_START = 120
SECONDS_TO_SPARE = 40  # timeout of a load generator beyond its measurement; a call's is 30
MINILM_ROUNDS = 3  # for each round of the other loads: a contender takes milliseconds
BLOCKS = {"block": "multi_head", "cross": "cross_attention"}

say = Console(highlight=False, soft_wrap=True).print


class NotMeasured(RuntimeError):
    """A load generator failed or received a wrong answer; the message is its last line of output."""


class OutOfTime(RuntimeError):
    """The minutes of the run are over."""


class Run:
    """One run: its servers, load generators and results.

    Args:
        options: the command's options.
        stack: the exit stack that stops the servers.
    """

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self._options = options
        self._stack = stack
        self._home: Path = options.build
        self._models, self._reference = self._home / "models", self._home / "reference.npz"
        self._file: Path = options.results
        self._servers: dict[str, Server] = {}
        self._pythons: dict[str, Path] = {"development": OWN["development"] / "bin/python"}
        self._begin = time.monotonic()
        self.results = Results.load(self._file) if options.resume and self._file.exists() else Results()
        self.results.failures.clear()

    def measure(self, cases: Sequence[Case]) -> None:
        """Prepare, then measure in rounds until the rounds or the minutes are over."""
        begun = self._begun()
        if cases:
            self._prepare()
        if cases or not self.results.about:
            self._describe(begun)
        if plan.START in self._options.loads and not self.results.start:
            say("start to ready")
            start()  # fills the file cache
            self.results.start = [start() for _ in range(RUNS)]
        if plan.MINILM in self._options.loads and minilm.case(minilm.LENGTHS[-1]) not in self.results.measured:
            self._minilm()
            self.results.about["MiniLM"] = ", ".join(begun.values())
            self._save()
        for name in dict.fromkeys(name for case in cases for each in case.contenders for name in each.servers):
            self._serve(name)
        try:
            for number in range(self._options.rounds if cases else 0):
                self._round(cases, number)
        except OutOfTime:
            say("the minutes are over")

    def _minilm(self) -> None:
        """Measure an imported MiniLM, without a server."""
        say("MiniLM: import, export and measurement")
        folder = self._home / plan.MINILM
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            measured = minilm.measure_apart(folder, MINILM_ROUNDS * self._options.rounds, plan.SERVER_CORE)
        except minilm.NotMeasured as error:
            self._fail("MiniLM", str(error))
            return
        for length, contenders in measured.items():
            for name, seconds in contenders.items():
                for number, taken in enumerate(seconds):
                    self.results.add(minilm.case(length), name, number, {"rate": 1 / taken, "p50": 1e3 * taken})

    def _round(self, cases: Sequence[Case], number: int) -> None:
        before = self._elapsed()
        for case in cases:
            for contender in case.contenders:
                self._measure(case, contender, number)
        self.results.about |= {"rounds": number + 1, "minutes": f"{self._elapsed() / 60:.0f}"}
        self._save()
        if 2 * self._elapsed() - before > 60 * self._options.minutes:
            raise OutOfTime

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def _save(self) -> None:
        self.results.save(self._file)

    @staticmethod
    def _begun() -> dict[str, str]:
        command = shlex.join(("make", "bench", *([f"BENCH={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else ())))
        begun = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return {"command": f"`{command}`", "date": begun}

    def _describe(self, begun: dict[str, str]) -> None:
        own = {name: folder / "bin/python" for name, folder in OWN.items()}
        peers = {name: python for name, python in self._pythons.items() if name not in own}
        self.results.versions = {name: environments.versions(python) for name, python in (own | peers).items()}
        self.results.about = begun | machine.describe() | {"seconds a measurement": self._options.seconds}

    def _prepare(self) -> None:
        """Export the blocks, compute the reference, and make the environments."""
        if not self._options.resume:
            shutil.rmtree(self._models, ignore_errors=True)
        for name, kind in BLOCKS.items():
            if (self._models / name / "1/manifest.json").exists():
                continue
            say(f"exporting {kind}")
            shape = ("--width", "384", "--heads", "12", "--name", name, "--models", self._models)
            command = (OWN["development"] / "bin/attention-export", "block", kind, *shape)
            subprocess.run(list(map(str, command)), check=True, capture_output=True, env=servers.environment())  # noqa: S603 # our own
        reference.write(self._reference, self._models)
        for name in (*self._options.peers, *(["load"] if self._options.peers else [])):
            self._install(name)

    def _install(self, name: str) -> None:
        say(f"installing {name}")
        try:
            self._pythons[name] = environments.install(name, self._home / "environments")
        except environments.CannotInstall as error:
            self._fail(name, f"cannot be installed: {error}")

    def _serve(self, name: str) -> None:
        """Start a server and wait for a right answer."""
        starts: dict[str, tuple[str, str, Callable[[Path], servers.Start]]] = {
            "attention": ("development", plan.SERVER_CORE, lambda _: servers.attention(self._models)),
            "replica": ("development", plan.LOAD_CORE, lambda _: servers.attention(self._models)),
            plan.BEFORE: (
                "development",
                plan.SERVER_CORE,
                lambda _: servers.attention(self._models, tree=self._earlier),
            ),
            "grpcio": (
                "development",
                plan.SERVER_CORE,
                lambda _: servers.attention(self._models, "--grpc-server", "grpcio"),
            ),
            "two slots": ("development", plan.BOTH_CORES, lambda _: servers.attention(self._models)),
            "bare gRPC": ("development", plan.SERVER_CORE, lambda _: servers.bare_grpc(self._block)),
            "mosec": ("mosec", plan.SERVER_CORE, lambda python: servers.mosec(python, self._block, batched=False)),
            "mosec batched": (
                "mosec",
                plan.SERVER_CORE,
                lambda python: servers.mosec(python, self._block, batched=True),
            ),
            "Triton": ("Triton", plan.SERVER_CORE, lambda python: servers.triton(python, self._block)),
            "MLServer": (
                "MLServer",
                plan.SERVER_CORE,
                lambda python: servers.mlserver(python, self._block, self._home / "mlserver"),
            ),
        }
        environment, cores, how = starts[name]
        if environment not in self._pythons:
            return
        say(f"starting {name}")
        server = Server(name, how(self._pythons[environment]), cores, self._home)
        self._stack.callback(server.stop)
        self._servers[name] = server
        try:
            self._await(name)
        except ServerFailed as error:
            self._fail(name, f"does not start: {error}")
            self._servers.pop(name).stop()

    def _await(self, name: str) -> None:
        """Call a server until its answers are right.

        Raises:
            ServerFailed: the server has ended, or its answers are not right in time.
        """
        contender = next(each for each in plan.MANY if each.servers and each.peer == _peer(name))
        server, end = self._servers[name], time.monotonic() + SECONDS_TO_START
        while True:
            server.check()
            try:
                self._ask(plan.SPEED[1], contender, server.address, 0.0)
            except NotMeasured as error:
                if time.monotonic() > end:
                    raise ServerFailed(str(error)) from error
            else:
                return

    @cached_property
    def _earlier(self) -> Path:
        """The source tree of the earlier revision, unpacked beside the results."""
        tree = self._home / "earlier" / self._options.against
        if not tree.is_dir():
            tree.mkdir(parents=True)
            archive = subprocess.run(  # noqa: S603 # our own
                ["git", "archive", self._options.against],  # noqa: S607 # the system's
                check=True,
                capture_output=True,
                cwd=ROOT,
            )
            subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)  # noqa: S603, S607 # the system's
        return tree

    @property
    def _block(self) -> Path:
        return self._models / "block/1"

    def _measure(self, case: Case, contender: Contender, number: int) -> None:
        """Measure one round of one contender, and save the result or the failure.

        Raises:
            OutOfTime: the minutes of the run are over.
        """
        if self._elapsed() > 60 * self._options.minutes:
            raise OutOfTime
        if self.results.has(case.key, contender.name, number) or not self._takes_part(contender):
            return
        try:
            for name in contender.servers:
                self._servers[name].check()
            target = self._target(contender)
            measured = self._ask(case, contender, target, self._options.seconds)
        except ServerFailed as error:  # the run continues without this server
            for name in contender.servers:
                self._servers.pop(name).stop()
                self._fail(name, f"{case.title}, round {number + 1}: {error}")
            return
        except NotMeasured as error:
            self._fail(f"{case.title}, {contender.name}, round {number + 1}", str(error))
            return
        self.results.add(case.key, contender.name, number, measured)
        self._save()
        times = "".join(f" {name} {value:8.2f} ms" for name, value in measured.items() if name in {"p50", "p99"})
        label = f"{number + 1} {case.title:30} {contender.name:32}"
        say(f"{self._elapsed():5.0f} s  {label} {measured['rate']:9,.0f}/s{times}")

    def _target(self, contender: Contender) -> str:
        """Return the addresses of a contender's servers, or the repository for one in process."""
        asked = [self._servers[name] for name in contender.servers]
        return ",".join(each.rest if contender.client == "rest" else each.address for each in asked) or str(
            self._models
        )

    def _takes_part(self, contender: Contender) -> bool:
        wanted = not contender.peer or contender.peer in self._options.peers
        return wanted and all(name in self._servers for name in contender.servers)

    def _ask(self, case: Case, contender: Contender, target: str, seconds: float) -> dict[str, float]:
        """Run a load generator and return its measurement.

        Raises:
            NotMeasured: the load generator failed.
            ServerFailed: the load generator did not end.
        """
        load = Load(
            target=target,
            reference=str(self._reference),
            lengths=case.lengths,
            mode=contender.mode,
            concurrency=contender.concurrency or case.concurrency,
            seconds=seconds,
            outputs=contender.outputs or case.outputs,
        )
        python = self._pythons.get("load" if contender.peer else "development")
        if python is None:
            raise NotMeasured("its load generator cannot be installed")
        module = f"benchmarks.serving.clients.{contender.client}"
        command = ["taskset", "--cpu-list", contender.cores, python, "-m", module, json.dumps(asdict(load))]
        try:
            done = subprocess.run(  # noqa: S603 # our own
                command,
                capture_output=True,
                text=True,
                timeout=5 * seconds + SECONDS_TO_SPARE,
                env=servers.environment() | servers.source_path(ROOT),
                cwd=ROOT,
                check=True,
            )
        except subprocess.TimeoutExpired as error:
            raise ServerFailed(f"no end after {error.timeout:.0f} s") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
            raise NotMeasured(said[-1][-200:]) from error
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured

    def _fail(self, what: str, why: str) -> None:
        say(f"{what}: {why}", style="red")
        self.results.failures[what] = why
        self._save()


def main() -> None:
    """Measure and write the document."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the exit stack, which stops the servers
    options.build.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        every = plan.against() if options.against else plan.CASES
        cases = [case for case in every if case.key in options.loads]
        with ExitStack() as stack:
            Run(options, stack).measure(cases)
    results = Results.load(options.results)
    if options.against:
        say(report.against(results, options.against))
        return
    document = options.out / DOCUMENT.name
    (options.out / "figures").mkdir(exist_ok=True)
    report.write(results, document, DOCUMENT)
    figure.draw(results, options.out / "figures/benchmarks.svg")
    say(f"wrote {document}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    keys = (plan.START, plan.MINILM, *(case.key for case in plan.CASES))
    parser.add_argument("--quick", action="store_true", help="one round of half a second each")
    parser.add_argument("--rounds", type=int, help="rounds, 5")
    parser.add_argument("--seconds", type=float, help="seconds of a measurement, 1.5")
    parser.add_argument(
        "--minutes", type=float, default=25, help="time of the run in minutes, 25; no round begins that would exceed it"
    )
    parser.add_argument(
        "--peers", type=_names(plan.PEERS), default=plan.PEERS, help=f"of {','.join(plan.PEERS)}; or none"
    )
    parser.add_argument("--against", metavar="REV", help="compare with an earlier revision only, without peers")
    parser.add_argument("--loads", type=_names(keys), default=keys, help=f"of {','.join(keys)}")
    parser.add_argument("--out", type=Path, help="folder of the document; docs for a complete run")
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build/bench", help="folder of environments, blocks, logs, results"
    )
    parser.add_argument("--resume", action="store_true", help="measure only cases that the results lack")
    parser.add_argument("--report", action="store_true", help="only write the document from the results")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 1.5)
    whole = not options.quick and options.peers == plan.PEERS and options.loads == keys
    if options.against:
        options.peers, whole = (), False
    part = "against" if options.against else "quick" if options.quick else "part"
    options.out = options.out or (DOCUMENT.parent if whole else options.build / part)
    options.results = options.out / "benchmarks.json"
    return options


def _names(known: Sequence[str]) -> Callable[[str], Sequence[str]]:
    """Return a parser of comma-separated names."""

    def parse(given: str) -> Sequence[str]:
        names = [] if given == "none" else given.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
        return tuple(name for name in known if name in names)

    return parse


def _peer(server: str) -> str:
    return next((peer for peer in plan.PEERS if server.startswith(peer)), "")


if __name__ == "__main__":
    main()
