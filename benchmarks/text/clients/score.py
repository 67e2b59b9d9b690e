"""A file of texts on two cores: `score` by the local engine, its start included; or two processes, one by one."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.serving.clients.loop import Load, Stopwatch, given_load, print_measurement, rate
from benchmarks.text.fused import Fused
from benchmarks.text.texts import Texts

ROWS, FEW_ROWS = 50_000, 2_000
ROWS_ALONE = 10_000  # of two processes without a start: as many as a steady rate takes
LEAST_SECONDS = 0.8  # of a measurement with all rows


def main() -> None:
    """Measure one mode: `score` or `two`."""
    load = given_load()
    run, rows = (score, ROWS) if load.mode == "score" else (two, ROWS_ALONE)
    texts = Texts(Path(load.reference), load.lengths)
    print_measurement(run(texts, rows if load.seconds >= LEAST_SECONDS else FEW_ROWS, load))


def score(texts: Texts, rows: int, load: Load) -> dict[str, float]:
    """Score a file of texts."""
    with TemporaryDirectory() as folder:
        source, answers = Path(folder) / "texts.jsonl", Path(folder) / "answers.parquet"
        source.write_text("".join(json.dumps({"text": texts[i % len(texts)]}) + "\n" for i in range(rows)))
        command = [Path(sys.executable).with_name("attention-client"), "score", source, answers, "--model", "minilm"]
        command += ["--engine", "local", "--models", Path(load.target).parent / "models", "--outputs", "hidden:mean"]
        watch = Stopwatch()
        subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)  # noqa: S603 # our own
        return rate(rows, watch)


def two(texts: Texts, rows: int, load: Load) -> dict[str, float]:
    """Answer as many texts by two processes; their start is not counted."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    arguments = (Path(load.target), list(texts), rows // 2, barrier)
    workers = [spawn.Process(target=_answer, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    barrier.wait()
    watch = Stopwatch()
    for worker in workers:
        worker.join()
        assert not worker.exitcode
    return rate(rows, watch)


def _answer(folder: Path, texts: list[str], rows: int, barrier: "multiprocessing.synchronize.Barrier") -> None:
    fused = Fused(folder)
    fused.answer(texts[0])
    barrier.wait()
    for i in range(rows):
        fused.answer(texts[i % len(texts)])


if __name__ == "__main__":
    main()
