"""The fused graph in process, without a server: one by one, or 32 padded texts at once."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.serving.clients.loop import given_load, one_by_one, print_measurement
from benchmarks.text.fused import Fused
from benchmarks.text.texts import CHECKED, Texts

TOGETHER = 32


def main() -> None:
    """Measure one mode: `one`, `sorted` by length or `arrival`, in batches."""
    load = given_load()
    texts, top = Texts(Path(load.reference), load.lengths), load.outputs == "top"
    fused = Fused(Path(load.target))
    for number in range(CHECKED):
        texts.check(number, fused.answer(texts[number], top=top), top=top)
    for number, answer in enumerate(fused.answer_padded(texts[:CHECKED])):
        texts.check(number, answer)
    run: Callable[[int], object] = lambda i: fused.answer(texts[i % len(texts)], top=top)  # noqa: E731
    together = 1
    if load.mode != "one":
        given = sorted(texts, key=fused.length) if load.mode == "sorted" else list(texts)
        packs = [given[i : i + TOGETHER] for i in range(0, len(given), TOGETHER)]
        # Whole passes over all texts: batches of sorted texts differ in length.
        run, together = (lambda _: [fused.answer_padded(pack) for pack in packs]), len(texts)
    print_measurement(one_by_one(run, load.seconds, together) if load.seconds else {})


if __name__ == "__main__":
    main()
