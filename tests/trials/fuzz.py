"""Malformed requests without number: `python -m tests.trials.fuzz --requests 100000`, or `--seconds 600`.

Every door is tried: both protocols over gRPC and HTTP, streams, raw sockets, schemathesis's cases of the OpenAPI
document, and, guided by coverage, the core in a process of its own. A request that the server answers with a fault of
ours, or that it tells too much about itself, ends the trial with the bytes that did it.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serving import ROOT

from tests.trials import hostile_http, hostile_json, hostile_proto, scorecard
from tests.trials.coverage_guided import TARGETS
from tests.trials.doors import GrpcDoor, HttpDoor, SocketDoor
from tests.trials.hostile_cases import CASES
from tests.trials.subject import Subject, Wrong, under_trial

# Small enough that a request can be over each.
SMALL = {"message-mib": 4, "answer-mib": 4, "scores-mib": 4, "sequences": 64}
LIMITS = [word for name, value in SMALL.items() for word in (f"--max-{name}", value)] + ["--memory-mib", 8]
DAMAGED = 9  # forms of each drawn message that are sent beside it
CHUNK = 50  # drawn messages between two checks
# How many of each hundred requests go through a door.
SHARES = {
    "attention.v1 and OIP, gRPC": 40,
    "streams, gRPC": 5,
    "attention.v1, HTTP": 25,
    "OIP, HTTP": 20,
    "sockets": 10,
}
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)


@dataclass
class Tally:
    """Counts of requests and answers."""

    requests: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)


def drawn(
    strategy: "st.SearchStrategy[Any]", number: int, examples: int, send: Callable[[Any, random.Random], None]
) -> None:
    """Draw examples and send each, with a generator that goes with it; shrink a failure."""

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, st.integers(0, 2**32 - 1))
    def each(example: Any, chosen: int) -> None:
        send(example, random.Random(chosen))

    each()


def grpc_messages(subject: Subject, number: int, examples: int) -> Counter[str]:
    door = GrpcDoor(subject)

    def send(example: tuple[str, bytes], rng: random.Random) -> None:
        method, message = example
        bodies = [message, *(hostile_proto.damaged(message, rng) for _ in range(DAMAGED))]
        door.send(method, bodies)

    messages = st.sampled_from(hostile_proto.METHODS).flatmap(
        lambda method: st.tuples(st.just(method), hostile_proto.messages(hostile_proto.VALID[method]))
    )
    drawn(messages, number, examples, send)
    door.close()
    return door.codes


def grpc_streams(subject: Subject, number: int, examples: int) -> Counter[str]:
    door = GrpcDoor(subject)

    def send(example: tuple[str, bytes], rng: random.Random) -> None:
        method, message = example
        for _ in range(DAMAGED + 1):
            door.stream(method, [message] * rng.randrange(3) + [hostile_proto.damaged(message, rng)] + [message])

    messages = st.sampled_from(list(hostile_proto.STREAMS)).flatmap(
        lambda method: st.tuples(st.just(method), hostile_proto.messages(hostile_proto.STREAMS[method]))
    )
    drawn(messages, number, examples, send)
    door.close()
    return door.codes


def http_attention(subject: Subject, number: int, examples: int) -> Counter[str]:
    door = HttpDoor(subject)

    def send(example: tuple[bytes, ...], rng: random.Random) -> None:
        document, memory, texts, embeddings = example
        for i in range(DAMAGED + 1):
            model = rng.choice(hostile_json.MODELS)
            path, body = rng.choices(
                [
                    (f"/v1/models/{model}:attend", document),
                    (f"/v1/models/{model}/memories", memory),
                    (f"/v1/models/{model}:tokenize", texts),
                    ("/v1/embeddings", embeddings),
                ],
                [4, 1, 1, 1],
            )[0]
            kind = "application/x-protobuf" if rng.randrange(20) == 0 else "application/json"
            accept = {"accept": "application/x-protobuf"} if rng.randrange(8) == 0 else {}
            door.send(quoted(path), hostile_json.damaged(body, rng) if i % 2 else body, {"content-type": kind} | accept)

    kinds = (hostile_json.ATTEND, hostile_json.MEMORY, hostile_json.TOKENIZE, hostile_json.EMBEDDINGS)
    drawn(
        st.tuples(*map(hostile_json.documents, kinds)),
        number,
        examples,
        send,
    )
    door.close()
    return door.codes


def http_infer(subject: Subject, number: int, examples: int) -> Counter[str]:
    door = HttpDoor(subject)

    def send(document: bytes, rng: random.Random) -> None:
        for i in range(DAMAGED + 1):
            model = quoted(rng.choice(hostile_json.MODELS))
            path = f"/v2/models/{model}/infer" if rng.randrange(10) else f"/v2/repository/models/{model}/load"
            body = hostile_json.damaged(document, rng) if i % 2 else document
            headers = {}
            if rng.randrange(3) == 0:
                body, length = hostile_json.binary(body, rng)
                headers = {"inference-header-content-length": length}
            door.send(path, body, headers)

    drawn(hostile_json.documents(hostile_json.INFER), number, examples, send)
    door.close()
    return door.codes


def sockets(subject: Subject, number: int, examples: int) -> Counter[str]:
    door = SocketDoor(subject)
    rng = random.Random(number)

    def send(chosen: int) -> None:
        own = random.Random(chosen)
        door.send(hostile_http.in_pieces(hostile_http.request(own), own))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, [rng.randrange(2**32) for _ in range(examples * (DAMAGED + 1))]))
    return door.codes


DOORS: dict[str, Callable[[Subject, int, int], "Counter[str]"]] = dict(
    zip(SHARES, (grpc_messages, grpc_streams, http_attention, http_infer, sockets), strict=True)
)


def quoted(path: str) -> str:
    return path.encode().decode("latin-1") if path.isascii() else path.replace("é", "%C3%A9")


def rounds(requests: int | None, seconds: float | None, first: int) -> Iterator[tuple[str, int, int]]:
    """Yield which door is next, a number to draw with, and how many messages are to be drawn.

    Args:
        requests: how many there are to be in all; or
        seconds: how long to go on.
        first: the first number.
    """
    end = time.monotonic() + (seconds or 0)
    left = {name: max(1, (requests or 0) * share // (100 * (DAMAGED + 1))) for name, share in SHARES.items()}
    number = first
    while any(left.values()) if seconds is None else time.monotonic() < end:
        for name, share in SHARES.items():
            examples = CHUNK * share // 10 if seconds is not None else min(left[name], CHUNK * share // 10)
            left[name] -= examples
            number += 1
            if examples > 0:
                yield name, number, examples


def fuzz(requests: int | None = None, seconds: float | None = None, first: int = 1) -> tuple[Tally, Subject]:
    """Send malformed requests.

    Raises:
        Wrong: the server broke one of the rules.
    """
    tally = Tally()
    with under_trial(*LIMITS) as subject:
        begun = time.monotonic()
        for name, number, examples in rounds(requests, seconds, first):
            tally.codes += DOORS[name](subject, number, examples)
            tally.requests[name] += examples * (DAMAGED + 1)
            subject.check(f"{name}, number {number}")
            total = tally.requests.total()
            print(
                f"{total:>8,} requests  {total / (time.monotonic() - begun):6.0f} a second"
                f"  memory {subject.memory() - subject.before:+6.1f} MiB  {name}",
                flush=True,
            )
    return tally, subject


def hostile_cases() -> Subject:
    """Do the cases that no generator finds, three times, so that memory kept once differs from memory that grows.

    Raises:
        Wrong: the server broke one of the rules.
    """
    with under_trial(*LIMITS, growth=320.0) as subject:
        for _ in range(3):
            for case in CASES:
                case(subject)
                subject.check(case.__name__)
                print(f"{subject.memory() - subject.before:+8.1f} MiB  {case.__name__.replace('_', ' ')}", flush=True)
    return subject


def schemathesis(examples: int, number: int = 1) -> int:
    """Have schemathesis make requests of the OpenAPI document; return how many it made.

    Raises:
        Wrong: it found a fault.
    """
    with under_trial(*LIMITS) as subject:
        command = [sys.executable, "-m", "schemathesis.cli"]
        command += [
            "--config-file",
            ROOT / "tests/trials/schemathesis.toml",
            "run",
            f"{subject.server.url}/openapi.json",
        ]
        command += ["--max-examples", examples, "--seed", number, "--checks", CHECKS, "--continue-on-failure"]
        command += [
            "--phases",
            "examples,coverage,fuzzing",
            "--generation-database",
            "none",
            "--output-truncate",
            "false",
        ]
        with TemporaryDirectory() as scratch:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=scratch)
        subject.check("schemathesis")
    if done.returncode:
        raise Wrong(f"schemathesis: {done.stdout[-20000:]}{done.stderr[-2000:]}")
    made = re.search(r"Test cases:\s*\n?\s*([\d,]+) generated", done.stdout)
    if made is None:
        raise Wrong(f"schemathesis: {done.stdout[-3000:]}")
    return int(made[1].replace(",", ""))


def coverage_guided(runs: int, seconds: int, number: int = 1) -> int:
    """Run the core in a process of its own, guided by coverage; return how often it ran.

    Args:
        runs: how often to run it.
        seconds: how long at most; 0 for as long as the runs take.
        number: the seed.

    Raises:
        Wrong: something but an error of the table came out of it.
    """
    total = 0
    for target in TARGETS:
        with TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "tests.trials.coverage_guided", target, scratch, f"-seed={number}"]
            most = max(1, seconds // len(TARGETS)) if seconds else 0
            command += [f"-runs={runs // len(TARGETS)}", f"-max_total_time={most}"]
            paths = os.pathsep.join([str(ROOT / "tests"), *sys.path])
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}
            )
            if done.returncode:
                crash = [each.read_bytes() for each in Path(scratch).glob("crash-*")]
                raise Wrong(f"{target}: {crash!r}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        found = re.findall(r"Done (\d+) runs", done.stderr)
        total += int(found[-1])
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        print(f"{int(found[-1]):>8,} executions guided by coverage ({coverage[-1]} edges)  {target}", flush=True)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Send malformed requests through every door.")
    parser.add_argument("--requests", type=int, help="how many", default=None)
    parser.add_argument("--seconds", type=float, help="how long, in place of how many")
    parser.add_argument("--seed", type=int, default=1, help="another number draws others")
    chosen = parser.parse_args()
    requests = chosen.requests or (None if chosen.seconds else 100_000)
    tally, subject = fuzz(requests, chosen.seconds, chosen.seed * 1_000_000)
    print("  ".join(f"{code} {count:,}" for code, count in sorted(tally.codes.items())))
    cases = hostile_cases()
    share = (requests or tally.requests.total()) // 10
    made = schemathesis(max(5, share // 250), chosen.seed)
    print(f"{made:>8,} requests of schemathesis")
    runs = coverage_guided(share * 10, 120 if chosen.seconds is None else int(chosen.seconds // 4) or 1, chosen.seed)
    command = f"make fuzz SECONDS={chosen.seconds:g}" if chosen.seconds else f"make fuzz N={requests}"
    scorecard.write(
        "fuzz",
        command,
        {
            "malformed requests, and of these by Schemathesis": f"{tally.requests.total() + made:,}, {made:,}",
            "requests among these that were valid, and answered": f"{tally.codes['OK'] + tally.codes['200']:,}",
            "coverage-guided executions of the core": f"{runs:,}",
            "crashes": "0",
            "INTERNAL, UNKNOWN, 500": "0",
            "errors with internal details": "0",
            scorecard.CHECKS: f"{subject.checks + cases.checks:,}",
            "largest growth of memory after a batch of requests": f"{subject.peak:.0f} MiB",
            "cases passed: floods, bombs, hand-made frames, stalled peers": f"{cases.checks:,}",
            "largest growth of memory after a case": f"{cases.peak:.0f} MiB",
        },
    )


if __name__ == "__main__":
    main()
