"""Tables of the results, written between the document's markers."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import minilm
from benchmarks.serving import plan
from benchmarks.serving.plan import Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.targets import Verdict, verdicts

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
GENERATED = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
BUSY = 0.9  # share of the load's core above which the load generator may bound the measurement
SECOND_REPLICA = ("unary", "front, ms", "compute, ms", "a second replica pays beyond, cores")
IN_PROCESS = plan.ONE_BY_ONE.name


def write(results: Results, document: Path, template: Path) -> None:
    """Replace the document's tables by those of a run."""
    tables = "\n\n".join((BEGIN, *_sections(results), END))
    document.write_text(GENERATED.sub(lambda _: tables, template.read_text()))


def _sections(results: Results) -> Iterator[str]:
    """Yield titles and tables, except tables without measurements."""
    sections = {
        "Targets": (targets(verdicts(results)),),
        "Sequences a second, and relative to the same graphs in process, one by one": (
            rates(results, plan.SPEED, IN_PROCESS, "{:.2f}"),
        ),
        "Latency of one caller: p50 and p99, ms": (
            latencies(results, [case for case in plan.SPEED if case.concurrency == 1]),
        ),
        "Weights, memory, cores: sequences a second, and relative to the first row": tuple(
            rates(results, cases, cases[0].contenders[0].name, "{:.2f} x")
            for cases in (*((each,) for each in plan.WEIGHTS), (plan.MEMORY,), plan.CORES, plan.TWO_CORES)
        ),
        "MiniLM in process, one thread: ms, and relative to one graph": (_minilm(results),),
        "When a second replica pays": (table(SECOND_REPLICA, _replicas(results)),),
        "Start, and twice the capacity": (
            table(("embedded models", "median", "worst"), _starts(results)),
            *(
                table((case.title, "a second", "p99, ms"), _overload(case, results))
                for case in plan.TOO_MUCH
                if case.key in results.measured
            ),
        ),
        "Run": (
            table(("", ""), about(results)),
            table(("not measured", "reason"), sorted(results.failures.items())),
        ),
    }
    for title, tables in sections.items():
        if any(tables):
            yield f"### {title}"
            yield from filter(None, tables)
            if _measured(results, plan.SPEED) and title.startswith("Sequences"):
                yield "![Rate of each server relative to the graphs in process](figures/benchmarks.svg)"


def against(results: Results, revision: str) -> str:
    """Return a table of this version's rates, an earlier revision's, and the ratios."""
    rows = []
    for case in _measured(results, plan.against()):
        for contender in case.contenders[::2]:
            earlier = plan.twin(contender).name
            ratio = results.ratio(case.key, contender.name, earlier)
            rates = [results.median(case.key, name) for name in (contender.name, earlier)]
            if ratio is not None:
                above, below = (results.rounds(case.key, name) for name in (contender.name, earlier))
                rounds = sorted(above[each] / below[each] for each in above.keys() & below.keys())
                cells = (
                    *(f"{rate:,.0f}" for rate in rates if rate),
                    f"{ratio:.2f}",
                    f"{rounds[0]:.2f} to {rounds[-1]:.2f}",
                )
                rows.append((case.title, contender.name, *cells))
    return table(("load", "sent", "a second", f"at {revision}", "ratio", "rounds"), rows)


def targets(found: Iterable[Verdict]) -> str:
    """Return a table of verdicts."""
    return table(("load", "target", "found", "met"), _targets(found))


def _targets(found: Iterable[Verdict]) -> Iterator[tuple[str, ...]]:
    words = {True: "met", False: "**not met**", None: "not measured"}
    for verdict in found:
        yield verdict.load, verdict.promise, verdict.found, words[verdict.met]


def rates(results: Results, cases: Sequence[Case], against: str, form: str) -> str:
    """Return a table of the cases' rates, with ratios to one contender."""

    def cell(case: str, contender: Contender) -> str:
        rate, ratio = results.median(case, contender.name), results.ratio(case, contender.name, against)
        busy = results.median(case, contender.name, "busy") or 0.0
        mark = "\\*" if contender.servers and busy > BUSY else ""
        return "-" if rate is None else f"{rate:,.0f}{mark}" + ("" if ratio is None else f" ({form.format(ratio)})")

    return _by_case(_measured(results, cases), cell)


def latencies(results: Results, cases: Sequence[Case]) -> str:
    """Return a table of p50 and p99 of the cases."""

    def cell(case: str, contender: Contender) -> str:
        p50, p99 = (results.median(case, contender.name, what) for what in ("p50", "p99"))
        return "-" if p50 is None or p99 is None else f"{p50:.2f}, {p99:.2f}"

    return _by_case(_measured(results, cases), cell)


def _minilm(results: Results) -> str:
    """Return a table of the times of MiniLM by length."""
    cases = [(length, minilm.case(length)) for length in minilm.LENGTHS if minilm.case(length) in results.measured]
    rows = []
    for name in (minilm.EXPORTED, minilm.JOINED, minilm.HIDDEN, minilm.WEIGHTS, minilm.EAGER):
        times = [(results.median(case, name, "p50"), results.ratio(case, minilm.EXPORTED, name)) for _, case in cases]
        rows.append((name, *(f"{ms:.2f} ({ratio:.2f} x)" for ms, ratio in times if ms and ratio)))
    return table(("", *(f"T={length}" for length, _ in cases)), rows) if cases else ""


def _measured(results: Results, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.key in results.measured]


def _by_case(cases: Sequence[Case], cell: Callable[[str, Contender], str]) -> str:
    """Return a table with a column for each case and a row for each contender that was measured."""
    contenders = dict.fromkeys(each for case in cases for each in case.contenders)
    rows = ((_name(each), *(cell(case.key, each) for case in cases)) for each in contenders)
    return table(("", *(case.title for case in cases)), (row for row in rows if {*row[1:]} != {"-"}))


def _name(contender: Contender) -> str:
    bare = {plan.UNARY.name, plan.RAGGED.name, plan.STREAMED.name, plan.CLIENT.name}
    return f"Attention Service, {contender.name}" if contender.name in bare else contender.name


def _replicas(results: Results) -> Iterator[tuple[str, ...]]:
    for case in (case for case in plan.SPEED if case.concurrency > 1):
        unary, alone = results.median(case.key, plan.UNARY.name), results.median(case.key, IN_PROCESS)
        if unary and alone and unary < alone:
            front, compute = 1 / unary - 1 / alone, 1 / alone
            yield case.title, f"{front * 1e3:.2f}", f"{compute * 1e3:.2f}", f"{1 + compute / front:.1f}"


def _starts(results: Results) -> Iterator[tuple[str, ...]]:
    if results.start:
        for name, figures, form in zip(
            ("start to ready, s", "resident, MiB"), zip(*results.start, strict=True), ("{:.2f}", "{:.0f}"), strict=True
        ):
            yield name, form.format(median(figures)), form.format(max(figures))


def _overload(case: plan.Case, results: Results) -> Iterator[tuple[str, ...]]:
    def figure(what: str, form: str = "{:,.0f}") -> str:
        found = results.median(case.key, plan.OVERLOAD.name, what)
        return "-" if found is None else form.format(found)

    yield "one caller", "-", figure("unloaded_p99", "{:.2f}")
    yield f"{case.concurrency} callers: the capacity", figure("peak"), "-"
    yield "offered", figure("offered"), "-"
    yield "admitted", figure("rate"), figure("p99", "{:.2f}")
    yield "refused", figure("refused"), figure("refused_p99", "{:.2f}")


def about(results: Results) -> Iterator[tuple[str, str]]:
    """Yield the facts of a run."""
    yield from ((name, str(value)) for name, value in results.about.items())
    spread = results.spread()
    if spread:
        yield "range of a rate over rounds", f"{median(spread):.0%} of its median typically, {max(spread):.0%} at most"
    for name, versions in results.versions.items():
        yield name, ", ".join(f"{package} {version}" for package, version in versions.items())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; empty without rows."""
    lines = (head, ("---",) * len(head), *rows)
    if len(lines) == 2:
        return ""
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
