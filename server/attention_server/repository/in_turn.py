"""Work that runs in threads ahead of its turn."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_turn(work: Callable[[S], T], items: Sequence[S], threads: int) -> Iterator[T]:
    """Yield the result of each item in order, while threads work on the next ones.

    As many results as there are threads stand ready at most, so that what they hold is bounded. What `work` raises is
    raised in its turn.
    """
    if threads < 2 or len(items) < 2:  # one thread gains nothing
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, "load") as pool:
        waiting = iter(items)
        running = deque(pool.submit(work, item) for item in islice(waiting, threads))
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(work, item) for item in islice(waiting, 1))
            yield result
