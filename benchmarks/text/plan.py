"""The loads of texts, the contenders of each, and the targets."""

from collections.abc import Iterator

from benchmarks.serving.plan import BOTH_CORES, SERVER_CORE, Case, Contender
from benchmarks.serving.results import Results
from benchmarks.serving.targets import Verdict, at_least, judged

ONE = Contender("in process, one by one", "in_process", "one", (), SERVER_CORE)
SORTED = Contender("in process, padded 32, sorted", "in_process", "sorted", (), SERVER_CORE)
ARRIVAL = Contender("in process, padded 32, as they come", "in_process", "arrival", (), SERVER_CORE)
UNARY = Contender("unary")
STREAMED = Contender("streamed", mode="streamed")
FASTAPI = Contender("FastAPI, transformers eager", "http", "json", ("FastAPI",))
MOSEC = Contender("mosec", "http", "msgpack", ("mosec",))
MOSEC_BATCHED = Contender("mosec, batched", "http", "msgpack", ("mosec batched",))
TRITON = Contender("Triton, batched", "open_inference", servers=("Triton",))
MLSERVER = Contender("MLServer", "open_inference", servers=("MLServer",))
MLSERVER_BATCHED = Contender("MLServer, batched", "open_inference", servers=("MLServer batched",))
SCORE = Contender("score, local engine", "score", "score", (), BOTH_CORES)
TWO = Contender("in process, one by one, two cores", "score", "two", (), BOTH_CORES)

SINGLE = (UNARY, FASTAPI, MOSEC, TRITON, MLSERVER)
SERVERS = (MOSEC, MOSEC_BATCHED, TRITON, MLSERVER, MLSERVER_BATCHED)
MANY = (ONE, SORTED, ARRIVAL, UNARY, STREAMED, FASTAPI, *SERVERS)

CASES = (
    Case("short-c1", "8 to 24 tokens c1", "8-24", 1, (ONE, *SINGLE), "hidden"),
    Case("short-c8", "8 to 24 tokens c8", "8-24", 8, (ONE, UNARY, FASTAPI, *SERVERS), "hidden"),
    Case("short-c32", "8 to 24 tokens c32", "8-24", 32, MANY, "hidden"),
    Case("four-c32", "4 tokens c32", "4", 32, MANY, "hidden"),
    Case("sentences-c32", "sentences c32", "sentences", 32, MANY, "hidden"),
    Case("mixed-c32", "8 to 256 tokens c32", "8-256", 32, MANY, "hidden"),
    Case(
        "top-c32",
        "8 to 24 tokens c32, top 8 of two pairs",
        "8-24",
        32,
        (ONE, UNARY, STREAMED, FASTAPI, MOSEC, TRITON, MLSERVER),
        "top",
    ),
    Case("twelve-c1", "12 tokens c1", "12", 1, (ONE, *SINGLE), "hidden"),
    Case("score", "8 to 24 tokens from a file, two cores", "8-24", 2, (TWO, SCORE), "hidden"),
)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield the verdict of every target."""
    ratio, one, fastapi = results.ratio, ONE.name, FASTAPI.name
    for ours, least in ((STREAMED, 1.5), (UNARY, 1.35)):
        load = f"8 to 24 tokens c32, {ours.name}"
        best = results.best("short-c32", *(each.name for each in SERVERS))
        yield at_least(load, least, one, ratio("short-c32", ours.name, one))
        yield at_least(load, 1.8, "the best server", ratio("short-c32", ours.name, best), best)
        yield at_least(load, 3, fastapi, ratio("short-c32", ours.name, fastapi))
    yield at_least("4 tokens c32, streamed", 2.4, one, ratio("four-c32", STREAMED.name, one))
    yield at_least("8 to 256 tokens c32, streamed", 1.05, one, ratio("mixed-c32", STREAMED.name, one))
    yield at_least("8 to 256 tokens c32, streamed", 2, SORTED.name, ratio("mixed-c32", STREAMED.name, SORTED.name))
    for ours in (UNARY, STREAMED):
        tops, pooled = (results.rounds(case, ours.name) for case in ("top-c32", "short-c32"))
        both = sorted(tops[each] / pooled[each] for each in tops.keys() & pooled.keys())
        found = both[len(both) // 2] if both else None
        yield at_least(f"top 8 of two pairs beside pooled hidden, {ours.name}", 0.85, "pooled hidden alone", found)
    server, alone = results.median("twelve-c1", UNARY.name, "p50"), results.median("twelve-c1", one, "p50")
    added = None if server is None or alone is None else server - alone
    yield judged("12 tokens c1, p50", "at most in process + 0.35 ms", added, lambda ms: ms <= 0.35, "+ {:.2f} ms")
    yield at_least("score of short texts, two cores", 1.6, TWO.name, ratio("score", SCORE.name, TWO.name))
