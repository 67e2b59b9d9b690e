"""Comparison of the service, the same graphs in process, mosec, Triton and MLServer under the same loads, in one run.

    make bench                  # everything; writes docs/benchmarks.md and docs/figures/benchmarks.svg
    make bench BENCH=--quick    # a moment of each measurement; writes build/bench/quick/

The server runs alone on core 0, the load generator on core 1. Contenders take turns in rounds, since the speed of a
machine drifts. A peer that cannot be installed or started is left out, and the document gives the reason. Results are
saved after each measurement.
"""

import argparse
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from benchmarks import minilm
from benchmarks.serving import environments, figure, machine, plan, reference, report, servers
from benchmarks.serving.environments import OWN, ROOT
from benchmarks.serving.plan import Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.running import OutOfTime, Runner, judged, names, say
from benchmarks.serving.targets import verdicts
from benchmarks.start import RUNS, start

DOCUMENT = ROOT / "docs/benchmarks.md"
MINILM_ROUNDS = 3  # for each round of the other loads: a contender takes milliseconds
BLOCKS = {"block": "multi_head", "cross": "cross_attention"}


class Run(Runner):
    """One run: its servers, load generators and results.

    Args:
        options: the command's options.
        stack: the exit stack that stops the servers.
    """

    CLIENTS = "benchmarks.serving.clients"

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        resumed = options.resume and options.results.exists()
        super().__init__(options, stack, Results.load(options.results) if resumed else Results())
        self._models = self.home / "models"
        self.results.failures.clear()

    @property
    def reference(self) -> Path:
        return self.home / "reference.npz"

    def run(self, cases: Sequence[Case]) -> None:
        """Prepare, then measure in rounds until the rounds or the minutes are over."""
        begun = self._begun()
        if cases:
            self._prepare()
        if cases or not self.results.about:
            self._describe(begun)
        if plan.START in self.options.loads and not self.results.start:
            say("start to ready")
            start()  # fills the file cache
            self.results.start = [start() for _ in range(RUNS)]
        if plan.MINILM in self.options.loads and minilm.case(minilm.LENGTHS[-1]) not in self.results.measured:
            self._minilm()
            self.results.about["MiniLM"] = ", ".join(begun.values())
            self.save()
        for name in dict.fromkeys(name for case in cases for each in case.contenders for name in each.servers):
            self._serve(name)
        try:
            for number in range(self.options.rounds if cases else 0):
                self._round(cases, number)
        except OutOfTime:
            say("the minutes are over")

    def _minilm(self) -> None:
        """Measure an imported MiniLM, without a server."""
        say("MiniLM: import, export and measurement")
        folder = self.home / plan.MINILM
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            measured = minilm.measure_apart(folder, MINILM_ROUNDS * self.options.rounds, plan.SERVER_CORE)
        except minilm.NotMeasured as error:
            self.fail("MiniLM", str(error))
            return
        for length, contenders in measured.items():
            for name, seconds in contenders.items():
                for number, taken in enumerate(seconds):
                    self.results.add(minilm.case(length), name, number, {"rate": 1 / taken, "p50": 1e3 * taken})

    def _round(self, cases: Sequence[Case], number: int) -> None:
        before = self.elapsed()
        for case in cases:
            for contender in case.contenders:
                if not self.results.has(case.key, contender.name, number) and self._takes_part(contender):
                    self.measure(case, contender, number, self._target(contender))
        self.results.about |= {"rounds": number + 1, "minutes": f"{self.elapsed() / 60:.0f}"}
        self.save()
        if 2 * self.elapsed() - before > 60 * self.options.minutes:
            raise OutOfTime

    @staticmethod
    def _begun() -> dict[str, str]:
        command = shlex.join(("make", "bench", *([f"BENCH={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else ())))
        begun = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return {"command": f"`{command}`", "date": begun}

    def _describe(self, begun: dict[str, str]) -> None:
        own = {name: folder / "bin/python" for name, folder in OWN.items()}
        peers = {name: python for name, python in self.pythons.items() if name not in own}
        self.results.versions = {name: environments.versions(python) for name, python in (own | peers).items()}
        self.results.about = begun | machine.describe() | {"seconds a measurement": self.options.seconds}

    def _prepare(self) -> None:
        """Export the blocks, compute the reference, and make the environments."""
        if not self.options.resume:
            shutil.rmtree(self._models, ignore_errors=True)
        for name, kind in BLOCKS.items():
            if (self._models / name / "1/manifest.json").exists():
                continue
            say(f"exporting {kind}")
            shape = ("--width", "384", "--heads", "12", "--name", name, "--models", self._models)
            command = (OWN["development"] / "bin/attention-export", "block", kind, *shape)
            subprocess.run(list(map(str, command)), check=True, capture_output=True, env=servers.environment())  # noqa: S603 # our own
        reference.write(self.reference, self._models)
        self.take_environments()

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
                lambda python: servers.mlserver(python, self._block, self.home / "mlserver"),
            ),
        }
        environment, cores, how = starts[name]
        if environment not in self.pythons:
            return
        say(f"starting {name}")
        contender = next(each for each in plan.MANY if each.servers and each.peer == _peer(name))
        self.start(name, how(self.pythons[environment]), cores, plan.SPEED[1], contender)

    @cached_property
    def _earlier(self) -> Path:
        """The source tree of the earlier revision, unpacked beside the results."""
        tree = self.home / "earlier" / self.options.against
        if not tree.is_dir():
            tree.mkdir(parents=True)
            archive = subprocess.run(  # noqa: S603 # our own
                ["git", "archive", self.options.against],  # noqa: S607 # the system's
                check=True,
                capture_output=True,
                cwd=ROOT,
            )
            subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)  # noqa: S603, S607 # the system's
        return tree

    @property
    def _block(self) -> Path:
        return self._models / "block/1"

    def _target(self, contender: Contender) -> str:
        """Return the addresses of a contender's servers, or the repository for one in process."""
        asked = [self.servers[name] for name in contender.servers]
        return ",".join(each.rest if contender.client == "rest" else each.address for each in asked) or str(
            self._models
        )

    def _takes_part(self, contender: Contender) -> bool:
        wanted = not contender.peer or contender.peer in self.options.peers
        return wanted and all(name in self.servers for name in contender.servers)


def main() -> None:
    """Measure and write the document."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the exit stack, which stops the servers
    options.build.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        every = plan.against() if options.against else plan.CASES
        cases = [case for case in every if case.key in options.loads]
        if options.judged:
            cases = judged(cases, verdicts)
        with ExitStack() as stack:
            Run(options, stack).run(cases)
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
        "--peers", type=names(plan.PEERS), default=plan.PEERS, help=f"of {','.join(plan.PEERS)}; or none"
    )
    parser.add_argument("--against", metavar="REV", help="compare with an earlier revision only, without peers")
    parser.add_argument("--loads", type=names(keys), default=keys, help=f"of {','.join(keys)}")
    parser.add_argument("--judged", action="store_true", help="only contenders whose figures a target takes")
    parser.add_argument("--out", type=Path, help="folder of the document; docs for a complete run")
    parser.add_argument("--build", type=Path, default=ROOT / "build/bench", help="folder of blocks, logs, results")
    parser.add_argument("--environments", type=Path, default=environments.HOME, help="of the peers, made once")
    parser.add_argument("--resume", action="store_true", help="measure only cases that the results lack")
    parser.add_argument("--report", action="store_true", help="only write the document from the results")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 1.5)
    whole = not options.quick and not options.judged and options.peers == plan.PEERS and options.loads == keys
    if options.against:
        options.peers, whole = (), False
    part = "against" if options.against else "quick" if options.quick else "part"
    options.out = options.out or (DOCUMENT.parent if whole else options.build / part)
    options.results = options.out / "benchmarks.json"
    return options


def _peer(server: str) -> str:
    return next((peer for peer in plan.PEERS if server.startswith(peer)), "")


if __name__ == "__main__":
    main()
