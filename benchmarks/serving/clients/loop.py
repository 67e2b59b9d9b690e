"""What load generators share: the load they are given, closed loops, and the measurement they print.

A load generator is a process of its own, on a core of its own: `python -m benchmarks.serving.clients.NAME JSON`, where
the JSON is a `Load`. Its first answers are compared with the reference; its last line is the measurement, as JSON. It
needs NumPy and its protocol's client alone.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

WARM_UP = 0.2  # of the seconds measured, before them

now = time.perf_counter


class Watch:
    """Time since it was made: of the clock, and of this process."""

    def __init__(self) -> None:
        self._begin, self._cpu = now(), time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds of the clock."""
        return now() - self._begin

    @property
    def busy(self) -> float:
        """The share of a core that this process has used: near 1, it was the load generator that was measured."""
        return (time.process_time() - self._cpu) / self.seconds


@dataclass(frozen=True)
class Load:
    """What to send, and how.

    Attributes:
        target: the address, or the repository of models where nothing is served.
        reference: a file of `reference.write`.
        lengths: as `block.sequences` takes them.
        way: how sequences travel; each load generator has its own ways.
        concurrency: sequences under way at once.
        seconds: how long; 0 compares answers and measures nothing.
        outputs: `output`; `weights`, which is both; `top`, the output and of the weights' mean over heads the top 8.
    """

    target: str
    reference: str
    lengths: str
    way: str
    concurrency: int
    seconds: float
    outputs: str = "output"


def given_load() -> Load:
    """Return the load that this process was started with."""
    return Load(**json.loads(sys.argv[1]))


def tell(measurement: dict[str, Any]) -> None:
    """Print a measurement for who started this process."""
    print(json.dumps(measurement), flush=True)  # noqa: T201 # it is read by who started us


def measurement(took: list[float], watch: Watch, sequences: int = 1) -> dict[str, float]:
    """Return sequences a second, and the milliseconds of a call at the median and the 99th percentile.

    Args:
        took: seconds of each call.
        watch: of all of them together.
        sequences: in a call.
    """
    p50, p99 = np.percentile(np.array(took) * 1e3, (50, 99))
    return rate(len(took) * sequences, watch) | {"p50": float(p50), "p99": float(p99)}


def rate(sequences: int, watch: Watch) -> dict[str, float]:
    """Return sequences a second, and how busy this process was."""
    return {"rate": sequences / watch.seconds, "busy": watch.busy}


def one_by_one(ask: Callable[[int], object], seconds: float, sequences: int = 1) -> dict[str, float]:
    """Measure calls one after another, in this thread."""
    _repeat(ask, WARM_UP * seconds)
    watch = Watch()
    return measurement(_repeat(ask, seconds), watch, sequences)


def _repeat(ask: Callable[[int], object], seconds: float) -> list[float]:
    took: list[float] = []
    end, i = now() + seconds, 0
    while (start := now()) < end:
        ask(i)
        i += 1
        took.append(now() - start)
    return took


async def at_once(
    ask: Callable[[int], Awaitable[object]], concurrency: int, seconds: float, sequences: int = 1
) -> dict[str, float]:
    """Measure calls of which a fixed number is under way."""
    await _repeat_at_once(ask, concurrency, WARM_UP * seconds)
    watch = Watch()
    return measurement(await _repeat_at_once(ask, concurrency, seconds), watch, sequences)


async def _repeat_at_once(ask: Callable[[int], Awaitable[object]], concurrency: int, seconds: float) -> list[float]:
    took: list[float] = []
    end = now() + seconds

    async def caller(first: int) -> None:
        i = first
        while (start := now()) < end:
            await ask(i)
            i += 1
            took.append(now() - start)

    await asyncio.gather(*(caller(7 * number) for number in range(concurrency)))
    return took
