"""The cost of failed rows: `python -m tests.trials.failing_rows`.

Texts of which every second one fails, and as many good ones, are scored in turn, through a server and without one. The
CPU time of server and command together, best of all rounds, is at most 1.3 times that of the good ones.
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from attention_batch.plan import ScoringJob
from attention_batch.run import run
from serving import ROOT, start_server

TEXTS = ("I gave my cat Tater a toy", "Mia was shown a letter by Leo", "Leo gave Mia a letter", "I gave Leo my toy")
MOST = 1.3
OUTPUTS = [{"name": "output", "pool": "mean"}, {"name": "predictions"}]


def write(path: Path, rows: int, *, half: bool) -> Path:
    texts = ["no such words here" if half and row % 2 else TEXTS[row % 4] for row in range(rows)]
    path.write_text("".join(json.dumps({"id": row, "text": text}) + "\n" for row, text in enumerate(texts)))
    return path


def cpu_seconds() -> float:
    """Return the CPU time of this process and of the processes that it started."""
    children = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    worst = 0.0
    with TemporaryDirectory() as name, start_server(ROOT / "models") as server:
        folder = Path(name)
        sources = {half: write(folder / f"{half}.jsonl", options.rows, half=half) for half in (False, True)}
        for engine in ("client", "local"):
            best = {False: float("inf"), True: float("inf")}
            for number in range(options.rounds):
                for half, source in sources.items():
                    output = folder / f"{engine}-{half}-{number}.parquet"
                    where = {"engine": engine, "target": server.grpc, "models": ROOT / "models", "shard_rows": 2**20}
                    before = cpu_seconds()
                    job = ScoringJob(
                        input=str(source), output=str(output), model="multi-head", outputs=OUTPUTS, **where
                    )
                    run(job, io.BytesIO(), io.BytesIO())
                    best[half] = min(best[half], cpu_seconds() - before)
            ratio = best[True] / best[False]
            print(f"{engine}: all good {best[False]:.2f} s, every second bad {best[True]:.2f} s of CPU: {ratio:.2f}")
            worst = max(worst, ratio)
    sys.exit(worst > MOST)


if __name__ == "__main__":
    main()
