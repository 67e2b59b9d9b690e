"""Sequences a second: a file scored by `attention-client score`, compared with the same graphs in process.

    .venv-dev/bin/python benchmarks/scoring.py

50,000 sequences of mixed lengths (lognormal, 4 to 256), d = 384, outputs pooled. Each contender has the same cores for
all its processes, by default two: a thread of the graphs on each in process; a slot of the server on each, shared with
the command. CPU is the time of all processes of a contender. Contenders take turns; the table has medians. A run takes
about five minutes.

- `graphs`: in process, without reading or writing: sequences in memory are projected, attended to and pooled. `the
  graph that pools`: the same with the graph that averages rows without computing them.
- `reading`: only reading the file into arrays.
- `script`: a script without a service, which reads the file, computes and writes the result.
- `score`: the command, through a server. `score, local`: the command, with `--engine local`; also from an Arrow file.
- `Triton's client`: a plain loop over `tritonclient.grpc`, as in its examples, in `.venv-clients`: one sequence a call,
  for a part of the sequences, pooled by NumPy. It calls the same server by the Open Inference Protocol; with
  `--triton URL` also a Triton there, with a model `m`, inputs `x` and `mask`, and output `y`.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from rich.console import Console

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
WIDTH = 384
EXPORT = ("block", "multi_head", "--width", WIDTH, "--heads", "12", "--name", "block", "--models")
TRITON_ROWS = 3000
NO_CANCEL = Run()
TRITON = """
import sys, time
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
url, flat, lengths, model, x_name, y_name, mask_name = sys.argv[1:]
flat, lengths = np.load(flat, mmap_mode="r"), np.load(lengths)
with InferenceServerClient(url) as client:
    began, start = time.perf_counter(), 0
    for length in lengths.tolist():
        query = np.ascontiguousarray(flat[start : start + length])[None]
        start += length
        inputs = [InferInput(x_name, query.shape, "FP32")]
        inputs[0].set_data_from_numpy(query)
        if mask_name:
            inputs.append(InferInput(mask_name, query.shape[:2], "BOOL"))
            inputs[1].set_data_from_numpy(np.ones(query.shape[:2], bool))
        client.infer(model, inputs, outputs=[InferRequestedOutput(y_name)]).as_numpy(y_name)[0].mean(0)
    print(time.perf_counter() - began)
"""


class Measurement:
    """The rate (sequences a second) and CPU time (seconds a sequence) of one measurement."""

    def __init__(self, rows: int, wall: float, cpu: float) -> None:
        self.rate = rows / wall
        self.cpu = cpu / rows


def draw_lengths(rows: int) -> np.ndarray:
    """Return random lengths: lognormal, 4 to 256, as in the comparison of servers."""
    return np.clip(np.random.default_rng(0).lognormal(3.6, 0.7, rows), 4, 256).astype(int)


def write(path: Path, rows: int) -> None:
    """Write the sequences as Parquet in row groups, as Arrow, and a part of these as `.npy` for Triton's client."""
    rng = np.random.default_rng(1)
    kind = pa.list_(pa.list_(pa.float32(), WIDTH))
    counts = draw_lengths(rows)
    columns = pa.schema([("id", pa.int64()), ("query", kind)])
    with (
        pq.ParquetWriter(path, columns, compression="none") as writer,
        pa.ipc.new_file(path.with_suffix(".arrow"), columns) as arrow,
    ):
        for start in range(0, rows, 4096):
            part = counts[start : start + 4096]
            flat = rng.standard_normal((int(part.sum()), WIDTH), dtype=np.float32)
            offsets = np.concatenate([[0], part.cumsum()]).astype(np.int32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), WIDTH)
            column = pa.ListArray.from_arrays(pa.array(offsets), vectors).cast(kind)
            table = pa.table({"id": np.arange(start, start + len(part)), "query": column}, columns)
            writer.write_table(table)
            arrow.write_table(table)
            if start == 0:
                some = part[:TRITON_ROWS]
                np.save(path.with_name("flat.npy"), flat[: some.sum()])
                np.save(path.with_name("lengths.npy"), some)


def batches(path: Path) -> Iterator[list[np.ndarray]]:
    """Yield the file's sequences in batches of 32."""
    for batch in pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20).iter_batches(32, columns=["query"]):
        column = batch.column("query")
        flat = column.flatten().flatten().to_numpy().reshape(-1, WIDTH)
        yield np.split(flat, np.cumsum(np.diff(column.offsets.to_numpy()))[:-1])


class Graphs:
    """The block's graphs in process, one thread a run."""

    def __init__(self, models: Path) -> None:
        engine = OnnxRuntime("cpu", threads=1)
        folder = models / "block/1"
        self._project, self._attend, self._pool = (
            engine.open((folder / f"{name}.onnx").read_bytes()) for name in ("project", "attend", "pool")
        )

    def pooled(self, queries: list[np.ndarray]) -> np.ndarray:
        """Compute pooled outputs, one sequence after another."""
        return np.stack([self._one(query[None]) for query in queries])

    def averaged(self, queries: list[np.ndarray]) -> np.ndarray:
        """Compute pooled outputs by the graph `pool`."""
        return np.concatenate([self._averaged(query[None])[0] for query in queries])

    def _averaged(self, x: np.ndarray) -> np.ndarray:
        mean = np.full((1, x.shape[1]), 1 / x.shape[1], np.float32)
        feeds = {"query": x, "key": x, "value": x, "pool": mean}
        output: np.ndarray = self._pool.run(["output"], feeds, NO_CANCEL)[0]
        return output

    def _one(self, x: np.ndarray) -> np.ndarray:
        k, v = self._project.run(["k", "v"], {"key": x, "value": x}, NO_CANCEL)
        output: np.ndarray = self._attend.run(["output"], {"query": x, "k": k, "v": v}, NO_CANCEL)[0][0].mean(0)
        return output


def in_memory(answer: Callable[[list[np.ndarray]], np.ndarray], path: Path, rows: int, cores: int) -> Measurement:
    """Time the graphs on sequences in memory, which repeat if the file has more."""
    some = list(zip(range(256), batches(path), strict=False))
    held = [queries for _, queries in some]
    repeated = [held[i % len(held)] for i in range(rows // 32)]
    with ThreadPoolExecutor(cores) as pool:
        began, cpu = time.perf_counter(), time.process_time()
        list(pool.map(answer, repeated))
        return Measurement(sum(map(len, repeated)), time.perf_counter() - began, time.process_time() - cpu)


def reading(path: Path, rows: int) -> Measurement:
    """Time reading alone."""
    began, cpu = time.perf_counter(), time.process_time()
    for _ in batches(path):
        pass
    return Measurement(rows, time.perf_counter() - began, time.process_time() - cpu)


def script(graphs: Graphs, path: Path, output: Path, rows: int, cores: int) -> Measurement:
    """Time a script that reads, computes and writes."""
    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(cores) as pool:
        results, in_flight = [], []
        for queries in batches(path):
            in_flight.append(pool.submit(graphs.pooled, queries))
            if len(in_flight) > 4 * cores:  # bounds reading ahead
                results.append(in_flight.pop(0).result())
        results += [each.result() for each in in_flight]
    column = pa.FixedSizeListArray.from_arrays(np.concatenate(results).ravel(), WIDTH)
    pq.write_table(pa.table({"id": np.arange(rows), "output": column}), output)
    return Measurement(rows, time.perf_counter() - began, time.process_time() - cpu)


def score(path: Path, output: Path, rows: int, *options: object, server: int | None = None) -> Measurement:
    """Time the command from start to end, including the server's CPU time."""
    command = [BIN / "attention-client", "score", path, output, "--model", "block", "--outputs", "output:mean"]
    began, cpu = time.perf_counter(), _children_cpu() + _cpu_of(server)
    subprocess.run([*map(str, command), "--restart", *map(str, options)], check=True, stderr=subprocess.DEVNULL)  # noqa: S603 # our own
    return Measurement(rows, time.perf_counter() - began, _children_cpu() + _cpu_of(server) - cpu)


def triton(path: Path, url: str, names: tuple[str, str, str, str], server: int | None = None) -> Measurement:
    """Time the loop over Triton's client, without its start."""
    files = (path.with_name("flat.npy"), path.with_name("lengths.npy"))
    command = [ROOT / ".venv-clients/bin/python", "-c", TRITON, url, *files, *names]
    cpu = _children_cpu() + _cpu_of(server)
    done = subprocess.run(  # noqa: S603 # our own
        list(map(str, command)), check=True, capture_output=True, text=True, env=_without_path()
    )
    return Measurement(len(np.load(files[1])), float(done.stdout), _children_cpu() + _cpu_of(server) - cpu)


def _without_path() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_of(process: int | None) -> float:
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(models: Path, cores: int) -> Iterator[tuple[str, int]]:
    """Serve with a slot a core; yield the gRPC address and the process id."""
    arguments = ["--models", models, "--rest-port", "0", "--grpc-port", "0", "--log-level", "error", "--slots", cores]
    command = list(map(str, [BIN / "attention-server", *arguments]))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 # our own
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split("grpc=")[1].strip(), process.pid
        finally:
            process.terminate()


def table(taken: dict[str, list[Measurement]]) -> str:
    """Return the medians as a Markdown table."""
    median = {name: statistics.median(each.rate for each in runs) for name, runs in taken.items()}
    lines = ["| | sequences a second | of the graphs | CPU of all, us a sequence |", "|---|---|---|---|"]
    for name, runs in taken.items():
        cpu = statistics.median(each.cpu for each in runs) * 1e6
        lines.append(f"| {name} | {median[name]:,.0f} | {median[name] / median['graphs']:.2f} | {cpu:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure in rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, default=ROOT / "build/scoring", help="a repository for the model `block`"
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--triton", metavar="URL")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # inherited by all started processes
    if not (options.models / "block/1").exists():
        subprocess.run(list(map(str, [BIN / "attention-export", *EXPORT, options.models])), check=True)  # noqa: S603 # our own
    rows, cores = options.rows, options.cores
    taken: dict[str, list[Measurement]] = {}
    with tempfile.TemporaryDirectory() as scratch, serving(options.models, cores) as (target, server):
        path, output = Path(scratch) / "in.parquet", Path(scratch) / "out.parquet"
        write(path, rows)
        os.sync()  # so that writing to the disk does not overlap the measurement
        graphs = Graphs(options.models)
        local = ("--engine", "local", "--models", options.models)
        ours, triton_names = ("block", "query", "output", ""), ("m", "x", "y", "mask")
        contenders: dict[str, Callable[[], Measurement]] = {
            "graphs": lambda: in_memory(graphs.pooled, path, rows, cores),
            "the graph that pools": lambda: in_memory(graphs.averaged, path, rows, cores),
            "reading": lambda: reading(path, rows),
            "script": lambda: script(graphs, path, output.with_name("script.parquet"), rows, cores),
            "score": lambda: score(path, output, rows, "--target", target, server=server),
            "score, local": lambda: score(path, output, rows, *local),
            "score, local, from Arrow": lambda: score(path.with_suffix(".arrow"), output, rows, *local),
            "Triton's client, this server": lambda: triton(path, target, ours, server),
        }
        if options.triton:
            contenders["Triton's client, Triton"] = lambda: triton(path, options.triton, triton_names)
        for _ in range(options.rounds):
            for name, run in contenders.items():
                taken.setdefault(name, []).append(run())
                took = taken[name][-1]
                Console(stderr=True).print(f"{name:30} {took.rate:8.0f}/s {took.cpu * 1e6:6.0f} us of CPU each")
    sys.stdout.write(table(taken) + "\n")


if __name__ == "__main__":
    main()
