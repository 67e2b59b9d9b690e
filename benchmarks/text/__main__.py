"""MiniLM from texts, under the loads that people have: the service, one fused graph in process, and servers of it.

    make bench-text                      # about 10 minutes; writes build/bench/text/text.md
    make bench-text BENCH=--quick        # a moment of each measurement

The server runs alone on core 0, the load generator on core 1; `score` has both. Contenders take turns in rounds. Every
contender starts from text, answers the mean of the last hidden states, and is compared with `transformers` in eager
mode before it is measured. A peer that cannot be installed or started is left out, and the report gives the reason.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks import minilm
from benchmarks.serving import environments, machine, report, servers
from benchmarks.serving.clients.loop import Load
from benchmarks.serving.environments import OWN, ROOT
from benchmarks.serving.plan import SERVER_CORE, Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.servers import Server, ServerFailed, Start
from benchmarks.text import fused, plan, texts

SECONDS_TO_START = 60
SECONDS_TO_SPARE = 300  # of a load generator beyond its measurement: `score` has as many rows as it takes
SECONDS_TO_WAIT = 30  # in the queue, as the peers' queues allow
ENVIRONMENTS = {"mosec batched": "mosec", "MLServer batched": "MLServer"}
DEVELOPMENT = OWN["development"] / "bin/python"

say = Console(highlight=False, soft_wrap=True).print


class NotMeasured(RuntimeError):
    """A load generator failed or received a wrong answer; the message is its last line of output."""


class Run:
    """One run: its servers, load generators and results.

    Args:
        options: the command's options.
        stack: stops the servers.
    """

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self._options = options
        self._stack = stack
        self._home: Path = options.build
        self._models, self._graphs = self._home / "models", self._home / "graphs"
        self._pythons: dict[str, Path] = {}
        self._servers: dict[str, Server] = {}
        self._begin = time.monotonic()
        self.results = Results()

    def measure(self, cases: list[Case]) -> None:
        """Measure all cases in rounds, until these or the minutes are over."""
        self.results.about = {
            "command": " ".join(("python -m benchmarks.text", *sys.argv[1:])),
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "seconds": str(self._options.seconds),
            **machine.describe(),
        }
        self._prepare()
        self._begin = time.monotonic()  # the minutes are those of measurements
        for number in range(self._options.rounds):
            for case in cases:
                for contender in case.contenders:
                    if time.monotonic() - self._begin > 60 * self._options.minutes:
                        say("the minutes are over")
                        return
                    self._measure(case, contender, number)
            self.results.about["rounds"] = str(number + 1)

    def _prepare(self) -> None:
        """Import the checkpoint, join its graphs, write texts and right answers, install peers."""
        source = minilm.checkpoint()
        version = self._models / "minilm/1"
        if not (version / "manifest.json").exists():
            command = (OWN["development"] / "bin/attention-export", "import", "transformer", source)
            options = ("--name", "minilm", "--models", self._models)
            subprocess.run(list(map(str, command + options)), check=True, stdout=sys.stderr, env=_environment())  # noqa: S603 # our own
        self._graphs.mkdir(parents=True, exist_ok=True)
        for name, arguments in fused.GRAPHS.items():
            minilm.join(version, self._graphs / f"{name}.onnx", **arguments)
        shutil.copy(version / "tokenizer.json", self._graphs)
        texts.write(self._home, source)
        for name in (*self._options.peers, "load"):
            try:
                self._pythons[name] = environments.install(name, self._options.environments)
            except environments.CannotInstall as error:
                self._fail(name, f"cannot be installed: {error}")

    def _start(self, name: str) -> Start:
        """Return the start command of a server."""
        (port,) = servers.free_ports(1)
        if name == "attention":
            return servers.attention(self._models, "--max-wait", SECONDS_TO_WAIT)
        python, env = self._pythons[ENVIRONMENTS.get(name, name)], {"FUSED": str(self._graphs)}
        if name == "FastAPI":  # with the torch and the transformers of the development environment
            packages = next((python.parents[1] / "lib").glob("python3*/site-packages"))
            path = os.pathsep.join((str(packages), _environment()["PYTHONPATH"]))
            env = {"CHECKPOINT": str(minilm.checkpoint()), "PYTHONPATH": path}
            return Start((DEVELOPMENT, "-m", "benchmarks.text.peers.fastapi_server", port), f"127.0.0.1:{port}", env)
        if name.startswith("mosec"):
            command = (python, "-m", "benchmarks.text.peers.mosec_server", "--address", "127.0.0.1", "--port", port)
            return Start(command, f"127.0.0.1:{port}", env | {"BATCHED": "1" if "batched" in name else ""})
        if name == "Triton":
            return servers.triton(python, self._graphs, "benchmarks.text.peers.triton_server")
        folder = self._home / name.replace(" ", "-")
        batching = {"max_batch_size": 32, "max_batch_time": 0.001} if "batched" in name else {}
        runtime = "benchmarks.text.peers.mlserver_runtime.Runtime"
        return servers.mlserver(python, self._graphs, folder, runtime, {"embed": batching, "explain": {}})

    def _server(self, name: str, case: Case, contender: Contender) -> Server:
        """Return a server that answers rightly, started at the first use.

        Raises:
            ServerFailed: it cannot be started, or has ended.
        """
        if name not in self._servers:
            if (peer := ENVIRONMENTS.get(name, name)) not in (*self._pythons, "attention"):
                raise ServerFailed(f"{peer} takes no part")
            server = Server(name, self._start(name), SERVER_CORE, self._home)
            self._stack.callback(server.stop)
            self._servers[name] = server
            end = time.monotonic() + SECONDS_TO_START
            while True:
                try:
                    server.check()
                    self._ask(case, contender, server.address, 0.0)
                except NotMeasured as error:
                    if time.monotonic() > end:
                        raise ServerFailed(f"does not start: {error}") from error
                else:
                    break
        self._servers[name].check()
        return self._servers[name]

    def _measure(self, case: Case, contender: Contender, number: int) -> None:
        """Measure one round of one contender, and save the result or the failure."""
        if any(name in self.results.failures for name in contender.servers):
            return
        try:
            named = [self._server(name, case, contender).address for name in contender.servers]
            measured = self._ask(case, contender, ",".join(named) or str(self._graphs), self._options.seconds)
        except ServerFailed as error:
            self._fail(contender.servers[0], str(error))
            return
        except NotMeasured as error:
            self._fail(f"{case.title}, {contender.name}, round {number + 1}", str(error))
            return
        self.results.add(case.key, contender.name, number, measured)
        self.results.save(self._home / "text.json")
        say(f"{time.monotonic() - self._begin:5.0f} s  {case.title:40} {contender.name:36} {measured['rate']:9,.0f}/s")

    def _ask(self, case: Case, contender: Contender, target: str, seconds: float) -> dict[str, float]:
        """Run a load generator and return its measurement.

        Raises:
            NotMeasured: the load generator failed.
            ServerFailed: the load generator did not end.
        """
        load = Load(
            target=target,
            reference=str(self._home),
            lengths=case.lengths,
            mode=contender.mode,
            concurrency=case.concurrency,
            seconds=seconds,
            outputs=case.outputs,
        )
        of_peers = contender.client in {"http", "open_inference"}
        if of_peers and "load" not in self._pythons:
            raise NotMeasured("its load generator cannot be installed")
        python = self._pythons["load"] if of_peers else DEVELOPMENT
        module = f"benchmarks.text.clients.{contender.client}"
        command = ["taskset", "--cpu-list", contender.cores, python, "-m", module, json.dumps(asdict(load))]
        try:
            done = subprocess.run(  # noqa: S603 # our own
                command,
                capture_output=True,
                text=True,
                timeout=5 * seconds + SECONDS_TO_SPARE,
                env=_environment(),
                cwd=ROOT,
                check=True,
            )
        except subprocess.TimeoutExpired as error:
            raise ServerFailed(f"no end after {error.timeout:.0f} s") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
            reason = next((line.strip() for line in said if "details =" in line), said[-1])  # of an error of gRPC
            raise NotMeasured(reason[-200:]) from error
        measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return measured

    def _fail(self, what: str, why: str) -> None:
        say(f"{what}: {why}", style="red")
        self.results.failures[what] = why


def write(results: Results, path: Path) -> None:
    """Write the report."""
    rated = [case for case in plan.CASES if case.contenders[0] == plan.ONE]
    sections = {
        "Targets": (report.targets(plan.verdicts(results)),),
        f"Texts a second, and relative to one fused graph {plan.ONE.name}": (
            report.rates(results, rated, plan.ONE.name, "{:.2f}"),
        ),
        "Latency of one caller: p50 and p99, ms": (
            report.latencies(results, [case for case in rated if case.concurrency == 1]),
        ),
        "A file on two cores: texts a second": (report.rates(results, plan.CASES[-1:], plan.TWO.name, "{:.2f}"),),
        "Run": (
            report.table(("", ""), report.about(results)),
            report.table(("not measured", "reason"), sorted(results.failures.items())),
        ),
    }
    shown = [f"## {title}\n\n" + "\n\n".join(filter(None, tables)) for title, tables in sections.items() if any(tables)]
    path.write_text("\n\n".join(("# MiniLM from texts", *shown)) + "\n")


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser("text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = tuple(case.key for case in plan.CASES)
    parser.add_argument("--quick", action="store_true", help="one round of half a second")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--seconds", type=float, help="of a measurement: 1.5, or 0.5 with --quick")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no measurement begins")
    parser.add_argument("--peers", default=",".join(plan.PEERS), help="with commas; or none")
    parser.add_argument("--loads", default=",".join(keys), help="with commas")
    parser.add_argument("--build", type=Path, default=ROOT / "build/bench/text", help="folder of all files")
    parser.add_argument("--environments", type=Path, default=ROOT / "build/bench/environments", help="of the peers")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.5 if options.quick else 1.5)
    options.peers = [each for each in plan.PEERS if each in options.peers.split(",")]
    options.build = options.build.resolve()
    options.build.mkdir(parents=True, exist_ok=True)
    loads = options.loads.split(",")
    if unknown := set(loads) - set(keys):
        parser.error(f"there is no load {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the exit stack, which stops the servers
    with ExitStack() as stack:
        run = Run(options, stack)
        run.measure([case for case in plan.CASES if case.key in loads])
    document = options.build / "text.md"
    write(run.results, document)
    say(document.read_text())


def _environment() -> dict[str, str]:
    return servers.environment() | servers.source_path(ROOT)


if __name__ == "__main__":
    main()
