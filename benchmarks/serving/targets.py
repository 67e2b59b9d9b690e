"""The targets, and whether a run met each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import minilm
from benchmarks.serving import plan
from benchmarks.serving.results import Results

MOSECS = (plan.MOSEC.name, plan.MOSEC_BATCHED.name)
BULK = (plan.RAGGED.name, plan.STREAMED.name)
IN_PROCESS, UNARY = plan.ONE_BY_ONE.name, plan.UNARY.name


@dataclass(frozen=True)
class Verdict:
    """The comparison of one target with a run.

    Attributes:
        load: the load, in words.
        promise: the target, in words.
        found: the measurement, in words.
        met: whether the measurement meets the target; None if not measured.
    """

    load: str
    promise: str
    found: str
    met: bool | None


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield the verdict of every target."""
    yield from _against_peers(results)
    yield from _latency(results)
    yield from _less_work(results)
    yield from _minilm(results)
    for case in plan.TOO_MUCH:
        yield from _overload(case, results)


def _against_peers(results: Results) -> Iterator[Verdict]:
    ratio, mixed, tiny = results.ratio, "mixed-c32", "t4-c32"
    mosec, bulk = results.best(mixed, *MOSECS), results.best(mixed, *BULK)
    best = f"the best of {' and '.join(MOSECS)}"
    yield at_least("mixed c32, unary", 1.0, best, ratio(mixed, UNARY, mosec), mosec)
    yield at_least("mixed c32, unary", 4, "Triton", ratio(mixed, UNARY, "Triton"))
    yield at_least("mixed c32, ragged or streamed", 1.2, "mosec's best", ratio(mixed, bulk, mosec), bulk, mosec)
    yield at_least("mixed c32, ragged or streamed", 0.8, IN_PROCESS, ratio(mixed, bulk, IN_PROCESS), bulk)
    mosec, bulk = results.best(tiny, *MOSECS), results.best(tiny, *BULK)
    yield at_least("T=4 c32, ragged or streamed", 1.7, "mosec's best", ratio(tiny, bulk, mosec), bulk, mosec)
    together = plan.TOGETHER.name
    yield at_least("T=4 c32, ragged or streamed", 0.8, together, ratio(tiny, bulk, together), bulk)
    for peer, least in (("mosec", 1.0), ("Triton", 2), ("MLServer", 5)):
        yield at_least("T=128 c8, all weights", least, peer, ratio("weights", UNARY, peer))


def _latency(results: Results) -> Iterator[Verdict]:
    ours, alone = results.median("t32-c1", UNARY, "p50"), results.median("t32-c1", IN_PROCESS, "p50")
    added = None if ours is None or alone is None else ours - alone
    yield judged("T=32 c1, unary, p50", "at most in process + 0.4 ms", added, lambda ms: ms <= 0.4, "+ {:.2f} ms")
    times = results.ratio("t32-c1", "Triton", UNARY, "p50")
    yield judged("T=32 c1, p50", "Triton's at least 4 x ours", times, lambda found: found >= 4, "{:.2f} x")


def _less_work(results: Results) -> Iterator[Verdict]:
    top, plain, sent = plan.TOP.name, plan.PLAIN.name, plan.SENT.name
    yield at_least(f"T=128 c8, {top}", 0.85, plain, results.ratio("reduced", top, plain))
    for contender, least in ((plan.HANDLE.name, 10), (plan.HANDLE_STREAMED.name, 40)):
        found = results.ratio("memory", contender, sent)
        yield at_least(f"one row over 1,024 positions, {contender}", least, sent, found)
    one, two = plan.ONE_THREAD.name, plan.TWO_THREADS.name
    yield at_least("engine alone on two cores, mixed", 1.8, "on one", results.ratio("slots-mixed", two, one))
    seconds, mib = (sorted(each) for each in zip(*results.start, strict=True)) if results.start else ([], [])
    start = seconds[len(seconds) // 2] if seconds else None
    load = "embedded models, idle"
    yield judged(load, "ready within 1.5 s of the start", start, lambda found: found <= 1.5, "{:.2f} s")
    megabytes = mib[-1] * 2**20 / 1e6 if mib else None
    yield judged(load, "at most 150 MB resident", megabytes, lambda found: found <= 150, "{:.0f} MB")


def _minilm(results: Results) -> Iterator[Verdict]:
    for length in minilm.LENGTHS:
        load, case = f"MiniLM, T={length}", minilm.case(length)
        graph = results.best(case, minilm.EXPORTED, minilm.JOINED)
        for ours, most, least in ((minilm.HIDDEN, 1.15, 1.5), (minilm.WEIGHTS, 1.4, 1.3)):
            times = results.ratio(case, graph, ours)
            promise = f"at most {most:g} x one graph's time"
            yield judged(f"{load}, {ours}", promise, times, _at_most(most), f"{{:.2f}} x ({graph})")
            eager = results.ratio(case, ours, minilm.EAGER)
            yield at_least(f"{load}, {ours}", least, "the rate of transformers in eager mode", eager)


def _at_most(most: float) -> Callable[[float], bool]:
    return lambda found: found <= most


def _overload(case: plan.Case, results: Results) -> Iterator[Verdict]:
    load, name = f"{case.title}, {plan.OVERLOAD.name}", plan.OVERLOAD.name
    good, peak, p99, unloaded, refused = (
        results.median(case.key, name, what) for what in ("rate", "peak", "p99", "unloaded_p99", "refused_p99")
    )
    share = good / peak if good and peak else None
    yield judged(load, "goodput at least 90 % of the peak", share, lambda found: found >= 0.9, "{:.0%}")
    times = p99 / unloaded if p99 and unloaded else None
    yield judged(load, "p99 of admitted calls below 3 x unloaded", times, lambda found: found < 3, "{:.1f} x")
    yield judged(load, "refusals within 10 ms (p99)", refused, lambda found: found <= 10, "{:.1f} ms")


def at_least(load: str, least: float, what: str, found: float | None, *who: str) -> Verdict:
    """Return the verdict of a ratio that is to be at least so large."""
    form = "{:.2f} x" + (f" ({' / '.join(who)})" if who else "")
    return judged(load, f"at least {least:g} x {what}", found, lambda ratio: ratio >= least, form)


def judged(load: str, promise: str, found: float | None, kept: Callable[[float], bool], form: str) -> Verdict:
    """Return the verdict of a figure; None is one that was not measured."""
    if found is None:
        return Verdict(load, promise, "not measured", None)
    return Verdict(load, promise, form.format(found), kept(found))
