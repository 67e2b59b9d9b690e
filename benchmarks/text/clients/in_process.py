"""The fused graph in process, without a server: one by one, or 32 padded texts at once."""

from pathlib import Path

from benchmarks.serving.clients.loop import Stopwatch, given_load, one_by_one, print_measurement, rate
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
    if not load.seconds:
        print_measurement({})
    elif load.mode == "one":
        print_measurement(one_by_one(lambda i: fused.answer(texts[i % len(texts)], top=top), load.seconds))
    else:
        given = sorted(texts, key=fused.length) if load.mode == "sorted" else list(texts)
        print_measurement(padded(fused, given, load.seconds))


def padded(fused: Fused, texts: list[str], seconds: float) -> dict[str, float]:
    """Measure whole passes over all texts, in batches, since batches of sorted texts differ in length."""
    batches = [texts[i : i + TOGETHER] for i in range(0, len(texts), TOGETHER)]
    fused.answer_padded(batches[0])
    watch, passes = Stopwatch(), 0
    while not passes or watch.seconds < seconds:
        for batch in batches:
            fused.answer_padded(batch)
        passes += 1
    return rate(passes * len(texts), watch)


if __name__ == "__main__":
    main()
