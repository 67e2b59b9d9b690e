"""The base of benchmarks that put servers and graphs in process under load, in turn: `benchmarks.serving` and `.text`.

A measurement is a load generator's process on its core. Every server runs as a process of its own, is started once and
answers rightly before it is measured. A peer that cannot be installed or started is left out with its reason.
"""

import argparse
import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from benchmarks.serving import environments, servers
from benchmarks.serving.clients.loop import Load
from benchmarks.serving.environments import OWN, ROOT
from benchmarks.serving.plan import Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.servers import Server, ServerFailed
from benchmarks.serving.targets import Verdict

say = Console(highlight=False, soft_wrap=True).print


class NotMeasured(RuntimeError):
    """A load generator failed or received a wrong answer; the message is its last line of output."""


class OutOfTime(RuntimeError):
    """The minutes of the run are over."""


class Runner(ABC):
    """The environments, servers, load generators and results of one run.

    Args:
        options: the command's options: `build`, `environments`, `peers`, `seconds`, `minutes`, `results`.
        stack: the exit stack that stops the servers.
        results: those that the run adds to.
    """

    CLIENTS = ""  # the package of load generators
    SECONDS_TO_START = 120
    SECONDS_TO_SPARE = 40  # timeout of a load generator beyond its measurement; a call's is 30

    def __init__(self, options: argparse.Namespace, stack: ExitStack, results: Results) -> None:
        self.options, self.home, self.results = options, Path(options.build), results
        self.servers: dict[str, Server] = {}
        self.pythons: dict[str, Path] = {"development": OWN["development"] / "bin/python"}
        self._stack = stack
        self._begin = time.monotonic()
        names = (*options.peers, *(("load",) if options.peers else ()))
        self._making = environments.begin(names, options.environments, say)

    def start_clock(self) -> None:
        """Begin the minutes of the run."""
        self._begin = time.monotonic()

    def elapsed(self) -> float:
        """Return the seconds since `start_clock`."""
        return time.monotonic() - self._begin

    def take_environments(self) -> None:
        """Wait for the environments of the peers; note the reason of each that cannot be had."""
        for name, made in self._making.items():
            try:
                self.pythons[name] = made.result()
            except environments.CannotInstall as error:
                self.fail(name, f"cannot be installed: {error}")

    def start(self, name: str, start: servers.Start, cores: str, case: Case, contender: Contender) -> None:
        """Start a server and wait for right answers; note the reason if there are none.

        Args:
            name: of the server.
            start: its command.
            cores: its cores.
            case: the load of the first answers.
            contender: what asks for these.
        """
        server = Server(name, start, cores, self.home)
        self._stack.callback(server.stop)
        self.servers[name] = server
        end = time.monotonic() + self.SECONDS_TO_START
        try:
            while True:
                server.check()
                try:
                    self.ask(case, contender, server.address, 0.0)
                except NotMeasured as error:
                    if time.monotonic() > end:
                        raise ServerFailed(str(error)) from error
                else:
                    return
        except ServerFailed as error:
            self.fail(name, f"does not start: {error}")
            self.servers.pop(name).stop()

    def measure(self, case: Case, contender: Contender, number: int, target: str) -> None:
        """Measure one round of one contender, and save the result or the failure.

        Raises:
            OutOfTime: the minutes of the run are over.
        """
        if self.elapsed() > 60 * self.options.minutes:
            raise OutOfTime
        try:
            for name in contender.servers:
                self.servers[name].check()
            measured = self.ask(case, contender, target, self.options.seconds)
        except ServerFailed as error:  # the run continues without this server
            for name in contender.servers:
                self.servers.pop(name).stop()
                self.fail(name, f"{case.title}, round {number + 1}: {error}")
            return
        except NotMeasured as error:
            self.fail(f"{case.title}, {contender.name}, round {number + 1}", str(error))
            return
        self.results.add(case.key, contender.name, number, measured)
        self.save()
        times = "".join(f" {name} {value:8.2f} ms" for name, value in measured.items() if name in {"p50", "p99"})
        label = f"{number + 1} {case.title:40} {contender.name:36}"
        say(f"{self.elapsed():5.0f} s  {label} {measured['rate']:9,.0f}/s{times}")

    def ask(self, case: Case, contender: Contender, target: str, seconds: float) -> dict[str, float]:
        """Run a load generator and return its measurement.

        Args:
            case: the load.
            contender: the load generator.
            target: the address of the server, or the folder of graphs in process.
            seconds: of the measurement; 0 only compares answers.

        Raises:
            NotMeasured: the load generator failed.
            ServerFailed: the load generator did not end.
        """
        load = Load(
            target=target,
            reference=str(self.reference),
            lengths=case.lengths,
            mode=contender.mode,
            concurrency=contender.concurrency or case.concurrency,
            seconds=seconds,
            outputs=contender.outputs or case.outputs,
        )
        python = self.pythons.get("load" if contender.peer else "development")
        if python is None:
            raise NotMeasured("its load generator cannot be installed")
        module = f"{self.CLIENTS}.{contender.client}"
        command = ["taskset", "--cpu-list", contender.cores, python, "-m", module, json.dumps(asdict(load))]
        try:
            done = subprocess.run(  # noqa: S603 # our own
                command,
                capture_output=True,
                text=True,
                timeout=5 * seconds + self.SECONDS_TO_SPARE,
                env=own_environment(),
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

    @property
    @abstractmethod
    def reference(self) -> Path:
        """The right answers, as the load generators take these."""

    def save(self) -> None:
        """Save the results."""
        self.results.save(self.options.results)

    def fail(self, what: str, why: str) -> None:
        """Note why a figure is missing."""
        say(f"{what}: {why}", style="red")
        self.results.failures[what] = why
        self.save()


class _Reads(Results):
    """Results without figures, which record what is read: case and contender."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[tuple[str, str]] = set()

    def rounds(self, case: str, contender: str, what: str = "rate") -> dict[str, float]:
        self.read.add((case, contender))
        return super().rounds(case, contender, what)


def judged(cases: Sequence[Case], verdicts: Callable[[Results], Iterable[Verdict]]) -> list[Case]:
    """Return the cases with those contenders only whose figures the verdicts read."""
    reads = _Reads()
    list(verdicts(reads))
    kept = [
        replace(case, contenders=tuple(each for each in case.contenders if (case.key, each.name) in reads.read))
        for case in cases
    ]
    return [case for case in kept if case.contenders]


def own_environment() -> dict[str, str]:
    """Return this process's variables for Python of this source tree."""
    return servers.environment() | servers.source_path(ROOT)


def names(known: Sequence[str]) -> Callable[[str], Sequence[str]]:
    """Return a parser of comma-separated names of an option, or `none`."""

    def parse(given: str) -> Sequence[str]:
        named = [] if given == "none" else given.split(",")
        if unknown := set(named) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
        return tuple(name for name in known if name in named)

    return parse
