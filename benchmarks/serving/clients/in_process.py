"""The upper limit: the same graphs in process, without a server."""

import itertools
import threading
from pathlib import Path

import numpy as np

from benchmarks.serving.block import Block, sequences
from benchmarks.serving.clients.loop import Load, Stopwatch, given_load, one_by_one, print_measurement, rate
from benchmarks.serving.reference import CHECKED, Reference

TOGETHER = 32


def main() -> None:
    """Measure one mode: `one` by one, 32 `together`, or as many `threads` of the engine as the concurrency."""
    load = given_load()
    block, xs = Block(Path(load.target) / "block/1"), [x[None] for x in sequences(load.lengths)]
    reference = Reference(Path(load.reference), load.lengths)
    for i, x in enumerate(xs[:CHECKED]):
        if load.outputs == "weights":
            output, weights = block.explain(x)
            reference.check(i, {"output": output[0], "weights": weights[0]})
        else:
            reference.check(i, {"output": block.attend(x)[0]})
    if load.mode == "threads":
        print_measurement(threads(block, xs, load))
        return
    run = block.explain if load.outputs == "weights" else block.attend
    if load.mode == "together":
        batch = np.concatenate(xs[:TOGETHER])
        print_measurement(one_by_one(lambda _: run(batch), load.seconds, TOGETHER))
    else:
        print_measurement(one_by_one(lambda i: run(xs[i % len(xs)]), load.seconds))


def threads(block: Block, xs: list[np.ndarray], load: Load) -> dict[str, float]:
    """Measure several threads on one session of the graphs."""
    counts = [0] * load.concurrency
    watch = Stopwatch()

    def work(number: int) -> None:
        for x in itertools.islice(itertools.cycle(xs), 7 * number, None):
            if watch.seconds >= load.seconds:
                return
            block.attend(x)
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(load.concurrency)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return rate(sum(counts), watch)


if __name__ == "__main__":
    main()
