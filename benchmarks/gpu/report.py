"""The page of a run: docs/gpu.md."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from benchmarks.gpu.graphs import MOST_ERROR, TIMED, GraphResult, named
from benchmarks.gpu.trials import CALLERS, Load, Trial


@dataclass(frozen=True)
class Report:
    """The findings of a run.

    Attributes:
        versions: the device, versions and commit.
        results: of every graph.
        trials: of the server.
        loads: of servers on the device and on one CPU core.
        skipped: graphs that were not run for want of time.
        seconds: that the run took.
    """

    versions: Mapping[str, str]
    results: Sequence[GraphResult]
    trials: Sequence[Trial]
    loads: Sequence[Load]
    skipped: Sequence[str]
    seconds: float

    def failures(self) -> list[str]:
        """Return each failure in one line; graphs that no GPU serves may fail."""
        graphs = [f"{result.name} {result.failure}" for result in self.results if result.served and result.failure]
        trials = [f"{trial.name}: {trial.found}" for trial in self.trials if not trial.passed]
        return [*graphs, *trials, *(f"{name} was not run: out of time" for name in self.skipped)]

    def page(self) -> str:
        """Return the page in Markdown."""
        failures = self.failures()
        verdict = (
            f"**{len(failures)} failures:**\n\n" + "\n".join(f"- {failure}" for failure in failures)
            if failures
            else "Every graph that the server runs on a GPU ran there and equals float64; every trial passed."
        )
        sections = [
            "# On a GPU",
            f"Written by `make gpu` on {datetime.now(UTC).date().isoformat()} in {self.seconds:.0f} seconds.",
            verdict,
            _table(("", ""), list(self.versions.items())),
            "## Graphs",
            _legend(),
            *_tables_of_graphs(self.results),
            "## The server",
            _table(
                ("tried", "found", ""), [(each.name, each.found, _mark(passed=each.passed)) for each in self.trials]
            ),
            f"Under load, a text of seven words to {CALLERS} callers over REST, the answer its weights:",
            _table(("device", "answers/s", "GPU memory in use", "resident"), [_load(load) for load in self.loads]),
        ]
        return "\n\n".join(sections) + "\n"


def _legend() -> str:
    return (
        f"Error is the largest against float64, as a share of the output's largest number, at most {MOST_ERROR:g}. "
        f"Times are of one run with {TIMED.batch} sequences of {TIMED.queries} positions, beside one CPU core; inputs "
        "and outputs are in the memory of the host. `sizes` are nodes on the CPU that compute sizes, indices or "
        "conditions; a node there that computes numbers is a failure. Copies are between the memories in the graph. "
        "Graphs in parentheses are not served on a GPU, and may fail."
    )


def _tables_of_graphs(results: Sequence[GraphResult]) -> list[str]:
    models = defaultdict(list)
    for result in results:
        models[result.name.partition("/")[0]].append(result)
    head = ("graph", "nodes", "sizes", "copies", "error", "FP16 error", "ms", "FP16 ms", "one core, ms", "x", "")
    return [f"### {model}\n\n" + _table(head, [_row(each) for each in found]) for model, found in models.items()]


def _row(result: GraphResult) -> tuple[str, ...]:
    file = result.name.partition("/")[2]
    name = file if result.served else f"({file})"
    placement = result.placement
    nodes = "" if placement is None else str(placement.on_device.total())
    sizes = "" if placement is None else named(placement.sizes_elsewhere)
    copies = "" if placement is None else str(placement.copies)
    half = f"{result.half_error:.1e}" if result.half_error is not None else result.half_failure
    ratio = f"{result.core_seconds / result.seconds:.1f}" if result.seconds else ""
    error = f"{result.error:.1e}" if placement else ""
    times = [f"{1e3 * each:.3f}" if each else "" for each in (result.seconds, result.half_seconds, result.core_seconds)]
    return (name, nodes, sizes, copies, error, half, *times, ratio, result.failure)


def _load(load: Load) -> tuple[str, ...]:
    place = "one CPU core" if load.place == "cpu" else load.place
    device = f"{load.device_bytes / 2**20:.0f} MiB" if load.device_bytes else "not told"
    return place, f"{load.rate:.0f}", device, f"{load.resident_bytes / 2**20:.0f} MiB"


def _mark(*, passed: bool) -> str:
    return "passed" if passed else "**failed**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
