"""Well-behaved load beside hostile callers: every answer is compared with the right one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from attention_client import AttentionClient
from attention_client.inputs import Sequence
from serving import HANG, wait_until

from tests.trials.subject import Good, Wrong

TIMEOUT = float(HANG)
ENOUGH = 30  # answers of the load that are waited for, to know that it goes on


class Load:
    """Threads that call one server or several through the shipped client until `stop`.

    Attributes:
        answered: number of answers, each right.
        wrong: a message for each wrong answer.
        lost: a message for each call that failed.
    """

    def __init__(self, target: str, goods: tuple[Good, ...], threads: int = 3, *, large: Good | None = None) -> None:
        self.answered = 0
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self._target = target
        self._goods = goods
        self._large = large
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Begin no more calls."""
        self._stopping.set()

    def stop(self) -> None:
        """Begin no more calls, and wait for those under way.

        Raises:
            Wrong: one has no answer.
        """
        self.end()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
            if thread.is_alive():
                raise Wrong("a caller never had an answer")

    def wait_for(self, more: int) -> None:
        """Wait for so many more answers."""
        wanted = self.answered + more
        wait_until(lambda: self.answered >= wanted)

    def _ask(self, first: int) -> None:
        with AttentionClient(self._target, timeout=TIMEOUT) as client:
            number = first
            while not self._stopping.is_set():
                number += 1
                good = self._large if self._large and number % 4 == 0 else self._goods[number % len(self._goods)]
                self._one(client, good)

    def _one(self, client: AttentionClient, good: Good) -> None:
        try:
            ask(client, good)
        except Wrong as wrong:
            self.wrong.append(str(wrong))
        except Exception as error:  # noqa: BLE001 # any error that a caller can see
            self.lost.append(f"{type(error).__name__}: {error}")
        else:
            with self._lock:
                self.answered += 1


def ask(client: AttentionClient, good: Good) -> None:
    """Send a good request through the shipped client, and compare the answer."""
    result = client.attend(good.model, **good.inputs, outputs=list(good.outputs), version=good.version)
    good.compare({name: result[name] for name in good.outputs}, "client")


def sequence_of(good: Good) -> Sequence:
    return Sequence(**good.inputs)


@contextmanager
def under_load(target: str, goods: tuple[Good, ...], threads: int = 3, *, large: Good | None = None) -> Iterator[Load]:
    """Keep a load on during the block; raise Wrong after it if a call failed or an answer was wrong."""
    load = Load(target, goods, threads, large=large)
    load.start()
    try:
        yield load
    finally:
        load.stop()
    if load.wrong or load.lost:
        raise Wrong(f"{len(load.wrong)} wrong, {len(load.lost)} lost: {[*load.wrong, *load.lost][:3]}")


def mib_of_request() -> Good:
    """Return a request of 1 MiB and the right answer: every row attends to the one key and has its value."""
    keys = np.zeros((1, 8), np.float32)
    value = np.arange(8, dtype=np.float32)[None]
    query = np.random.default_rng(3).standard_normal((2**20 // 32, 8)).astype(np.float32)
    right = np.broadcast_to(value, query.shape)
    return Good("dot", 1, {"query": query, "key": keys, "value": value}, {"output": right})


def call_all(calls: list[Callable[[], Any]]) -> None:
    """Run calls at the same time, and wait for all."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
