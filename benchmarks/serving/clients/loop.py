"""Common parts of the load generators: the load, closed loops, and the printed measurement.

A load generator is a separate process on its own core: `python -m benchmarks.serving.clients.NAME JSON`, where the JSON
is a `Load`. It compares its first answers with the reference, and prints the measurement as JSON in its last line. It
depends on NumPy and a client of its protocol alone.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

WARM_UP = 0.2  # seconds of warm-up for each second of measurement

now = time.perf_counter


class Stopwatch:
    """Wall time and CPU time since construction."""

    def __init__(self) -> None:
        self._begin, self._cpu = now(), time.process_time()

    @property
    def seconds(self) -> float:
        """The wall time in seconds."""
        return now() - self._begin

    @property
    def busy(self) -> float:
        """The share of a core that this process used; near 1, the load generator bounds the measurement."""
        return (time.process_time() - self._cpu) / self.seconds


@dataclass(frozen=True)
class Load:
    """The parameters of a load.

    Attributes:
        target: the server's address, or the repository of models in process.
        reference: a file of `reference.write`.
        lengths: the argument of `block.sequences`.
        mode: how sequences are sent, one of the load generator's modes.
        concurrency: sequences in flight.
        seconds: the time of the measurement; 0 only compares answers.
        outputs: `output`; `weights`, for output and weights; `top`, for output and the top 8 of the mean weights.
    """

    target: str
    reference: str
    lengths: str
    mode: str
    concurrency: int
    seconds: float
    outputs: str = "output"


def given_load() -> Load:
    """Return the load of this process, from its argument."""
    return Load(**json.loads(sys.argv[1]))


def print_measurement(measurement: dict[str, Any]) -> None:
    """Print a measurement for the parent process."""
    print(json.dumps(measurement), flush=True)  # noqa: T201 # the parent process reads stdout


def measurement(took: list[float], watch: Stopwatch, sequences: int = 1) -> dict[str, float]:
    """Return the rate in sequences a second, and the calls' p50 and p99 in milliseconds.

    Args:
        took: the seconds of each call.
        watch: the stopwatch of the measurement.
        sequences: the number of sequences in a call.
    """
    p50, p99 = np.percentile(np.array(took) * 1e3, (50, 99))
    return rate(len(took) * sequences, watch) | {"p50": float(p50), "p99": float(p99)}


def rate(sequences: int, watch: Stopwatch) -> dict[str, float]:
    """Return the rate in sequences a second, and this process's share of a core."""
    return {"rate": sequences / watch.seconds, "busy": watch.busy}


def one_by_one(ask: Callable[[int], object], seconds: float, sequences: int = 1) -> dict[str, float]:
    """Measure consecutive calls in this thread."""
    _repeat(ask, WARM_UP * seconds)
    watch = Stopwatch()
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
    """Measure a closed loop with a fixed number of calls in flight."""
    await _repeat_at_once(ask, concurrency, WARM_UP * seconds)
    watch = Stopwatch()
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
