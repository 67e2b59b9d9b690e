"""Sequences a second: a file scored through a server on one core, and the same sequences through the graphs in process.

    attention-export block multi_head --width 384 --heads 12 --name block --models build/scoring
    python benchmarks/scoring.py build/scoring --rows 50000

The server has one core to itself, which is also where the graphs run in process; the client has another. In process a
sequence is a row of the same file already in memory, projected, attended to and pooled: nothing is read or written.
Rounds alternate, for machines drift.

`--triton URL` asks a Triton server on the same core with a bare loop over its client, where `tritonclient` is there;
its model is `m` with inputs `x` and `mask` and the output `y`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attention_server.engine import Engine
from rich.console import Console

WIDTH = 384
SERVER_CORE, CLIENT_CORE = 0, 1


def lengths(rows: int) -> np.ndarray:
    """Lognormal, 4 to 256: the mixed lengths of the peers' comparison."""
    return np.clip(np.random.default_rng(0).lognormal(3.6, 0.7, rows), 4, 256).astype(int)


def write(path: Path, rows: int) -> None:
    """Write the file, in row groups as a job would."""
    rng = np.random.default_rng(1)
    kind = pa.list_(pa.list_(pa.float32(), WIDTH))
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("query", kind)]), compression="none") as writer:
        counts = lengths(rows)
        for start in range(0, rows, 4096):
            part = counts[start : start + 4096]
            flat = rng.standard_normal((int(part.sum()), WIDTH), dtype=np.float32)
            offsets = np.concatenate([[0], part.cumsum()]).astype(np.int32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), WIDTH)
            column = pa.ListArray.from_arrays(pa.array(offsets), vectors).cast(kind)
            writer.write_table(pa.table({"id": np.arange(start, start + len(part)), "query": column}))


def sequences(path: Path) -> Iterator[np.ndarray]:
    """Yield the file's sequences."""
    for batch in pq.ParquetFile(path).iter_batches(1024, columns=["query"]):
        column = batch.column("query")
        flat = column.flatten().flatten().to_numpy().reshape(-1, WIDTH)
        yield from np.split(flat, np.cumsum(np.diff(column.offsets.to_numpy()))[:-1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let this process use one core, until the block ends."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_process(models: Path, path: Path) -> float:
    """Return the seconds that the graphs alone take."""
    folder = models / "block/1"
    with on_core(SERVER_CORE):
        engine = Engine("cpu", threads=1)
        project, attend = (engine.open((folder / f"{name}.onnx").read_bytes()) for name in ("project", "attend"))
        took = 0.0
        for query in sequences(path):
            began = time.perf_counter()
            x = query[None]
            k, v = project.run(["k", "v"], {"key": x, "value": x})
            attend.run(["output"], {"query": x, "k": k, "v": v})[0][0].mean(0)
            took += time.perf_counter() - began
    return took


def scored(target: str, path: Path, output: Path) -> float:
    """Return the seconds that the command takes, from its start to its end."""
    executable = Path(sys.executable).with_name("attention-client")
    arguments = [executable, "score", path, output, "--model", "block", "--outputs", "output:mean", "--target", target]
    command = ["taskset", "-c", str(CLIENT_CORE), *arguments, "--restart"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # noqa: S603 # our own
    return time.perf_counter() - began


def triton(url: str, path: Path) -> float:
    """Return the seconds of a loop over Triton's client, one sequence after another, as its examples have it."""
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput  # noqa: PLC0415

    took = 0.0
    with on_core(CLIENT_CORE), InferenceServerClient(url) as client:
        for query in sequences(path):
            began = time.perf_counter()
            x = InferInput("x", (1, *query.shape), "FP32")
            x.set_data_from_numpy(query[None])
            mask = InferInput("mask", (1, len(query)), "BOOL")
            mask.set_data_from_numpy(np.ones((1, len(query)), bool))
            client.infer("m", [x, mask], outputs=[InferRequestedOutput("y")]).as_numpy("y")[0].mean(0)
            took += time.perf_counter() - began
    return took


@contextmanager
def serving(models: Path) -> Iterator[str]:
    """Serve on one core; yield the address."""
    executable = Path(sys.executable).with_name("attention-server")
    arguments = [executable, "--models", models, "--rest-port", "0", "--grpc-port", "0", "--log-level", "error"]
    command = ["taskset", "-c", str(SERVER_CORE), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 # our own
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split("grpc=")[1].strip()
        finally:
            process.terminate()


def main() -> None:
    """Measure, round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="a repository with the model `block`")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--triton", metavar="URL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, serving(options.models) as target:
        path = Path(scratch) / "in.parquet"
        write(path, options.rows)
        for _ in range(options.rounds):
            seconds = {
                "in process": in_process(options.models, path),
                "score": scored(target, path, Path(scratch) / "out.parquet"),
            }
            if options.triton:
                seconds["Triton's client in a loop"] = triton(options.triton, path)
            for name, took in seconds.items():
                share = seconds["in process"] / took
                Console().print(f"{name:26} {options.rows / took:8.0f} sequences/s  {share:5.2f} of in process")


if __name__ == "__main__":
    main()
