"""From results to the document: tables between its markers."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.serving import plan
from benchmarks.serving.plan import Case
from benchmarks.serving.results import Results
from benchmarks.serving.targets import verdicts

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
GENERATED = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
OURS = "Attention Service"
IN_PROCESS = plan.ONE_BY_ONE.name


def write(results: Results, document: Path, template: Path) -> None:
    """Put the tables of a run into the document, in place of those of the last."""
    tables = "\n\n".join((BEGIN, *_sections(results), END))
    document.write_text(GENERATED.sub(lambda _: tables, template.read_text()))


def _sections(results: Results) -> Iterator[str]:
    yield "### Targets"
    yield _table(("load", "target", "found", "met"), _targets(results))
    yield "### Sequences a second, and the share of the same graphs in process, one by one"
    yield _rates(results, plan.SPEED)
    yield "![Share of the graphs' own speed in process that each server keeps](figures/benchmarks.svg)"
    yield "### Latency of one caller: p50 and p99, ms"
    yield _latencies(results, [case for case in plan.SPEED if case.concurrency == 1])
    yield "### Weights, memory, cores"
    for cases in ((plan.WEIGHTS[0],), (plan.WEIGHTS[1],), (plan.MEMORY,), plan.CORES, plan.TWO_CORES):
        yield _beside(results, cases)
    yield "### When a second replica pays"
    yield _replicas(results)
    yield "### Start, and twice the capacity"
    yield _table(("", "median", "worst"), _starts(results))
    yield _table(("T=128, unary", "", ""), _overload(results))
    yield "### What was run"
    yield _table(("", ""), _about(results))
    if results.failures:
        yield _table(("not measured", "why"), sorted(results.failures.items()))


def _targets(results: Results) -> Iterator[tuple[str, ...]]:
    words = {True: "met", False: "**not met**", None: "not measured"}
    for verdict in verdicts(results):
        yield verdict.load, verdict.promise, verdict.found, words[verdict.met]


def _rates(results: Results, cases: Sequence[Case]) -> str:
    rows = ((name, *(_rate(results, case.key, key) for case in cases)) for key, name in _names(cases))
    return _table(("", *(case.title for case in cases)), rows)


def _rate(results: Results, case: str, contender: str) -> str:
    rate, share = results.median(case, contender), results.ratio(case, contender, IN_PROCESS)
    if rate is None:
        return "-"
    return f"{rate:,.0f}" + ("" if share is None else f" ({share:.2f})")


def _latencies(results: Results, cases: Sequence[Case]) -> str:
    def cell(case: str, contender: str) -> str:
        p50, p99 = (results.median(case, contender, what) for what in ("p50", "p99"))
        return "-" if p50 is None or p99 is None else f"{p50:.2f}, {p99:.2f}"

    rows = ((name, *(cell(case.key, key) for case in cases)) for key, name in _names(cases))
    return _table(("", *(case.title for case in cases)), rows)


def _beside(results: Results, cases: Sequence[Case]) -> str:
    """Return a table of cases whose contenders are held against the first."""
    first, *_ = cases[0].contenders

    def cell(case: Case, contender: str) -> str:
        rate, ratio = results.median(case.key, contender), results.ratio(case.key, contender, first.name)
        return "-" if rate is None else f"{rate:,.0f}" + ("" if ratio is None else f" ({ratio:.2f} x)")

    rows = ((name, *(cell(case, key) for case in cases)) for key, name in _names(cases))
    return _table(("sequences/s", *(case.title for case in cases)), rows)


def _replicas(results: Results) -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for case in (case for case in plan.SPEED if case.concurrency > 1):
            unary, alone = results.median(case.key, plan.UNARY.name), results.median(case.key, IN_PROCESS)
            if unary and alone and unary < alone:
                front, compute = 1 / unary - 1 / alone, 1 / alone
                yield case.title, f"{front * 1e3:.2f}", f"{compute * 1e3:.2f}", f"{1 + compute / front:.1f}"

    return _table(("unary", "front, ms", "compute, ms", "a second replica pays beyond, cores"), rows())


def _starts(results: Results) -> Iterator[tuple[str, ...]]:
    if results.start:
        for name, figures, form in zip(
            ("start to ready, s", "resident, MiB"), zip(*results.start, strict=True), ("{:.2f}", "{:.0f}"), strict=True
        ):
            yield name, form.format(median(figures)), form.format(max(figures))


def _overload(results: Results) -> Iterator[tuple[str, ...]]:
    def figure(what: str, form: str) -> str:
        found = results.median("overload", plan.OVERLOAD.name, what)
        return "-" if found is None else form.format(found)

    yield "one caller", "-", f"p99 {figure('unloaded_p99', '{:.2f}')} ms"
    yield "16 callers, the capacity", f"{figure('peak', '{:,.0f}')} sequences/s", "-"
    yield (
        f"{figure('offered', '{:,.0f}')} offered a second, admitted",
        f"{figure('rate', '{:,.0f}')} sequences/s",
        f"p99 {figure('p99', '{:.2f}')} ms",
    )
    yield "refused", f"{figure('refused', '{:,.0f}')}", f"p99 {figure('refused_p99', '{:.2f}')} ms"


def _about(results: Results) -> Iterator[tuple[str, str]]:
    yield from ((name, str(value)) for name, value in results.about.items())
    spread = results.spread()
    if spread:
        yield "rounds lie apart by", f"{median(spread):.0%} of their median as a rule, {max(spread):.0%} at most"
    for name, versions in results.versions.items():
        yield name, ", ".join(f"{package} {version}" for package, version in versions.items())


def _names(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Return all contenders of some cases, in order: as they are called in results, and in tables."""
    contenders = dict.fromkeys(each for case in cases for each in case.contenders)
    bare = {plan.UNARY, plan.RAGGED, plan.STREAMED, plan.CLIENT}
    return [(each.name, f"{OURS}, {each.name}" if each in bare else each.name) for each in contenders]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
