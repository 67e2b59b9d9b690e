"""A proof of the service on a GPU: every graph, the server's choices and failures, times and memory.

    make gpu                    with the packages of PYTHON
    make gpu WHEELS=wheels      with packages from a folder of wheels; nothing is downloaded

The report is written to docs/gpu.md. The exit status is 1 if anything failed, or if there is no GPU.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attention_server.inference.engine.onnxruntime import CUDA, OnnxRuntime
from attention_server.inference.engine.protocol import DeviceError

from benchmarks.gpu.device import memory_bytes, versions
from benchmarks.gpu.graphs import GraphFile, GraphResult, prove, version_graphs
from benchmarks.gpu.report import Report
from benchmarks.gpu.trials import Trial, fail_in_mid_run, try_devices

ROOT = Path(__file__).parents[2]
IMPORTED = ROOT / "build/gpu/imported"
TEXT_MODEL = "multi-head"
LARGE = "multi-head/pool.onnx"  # has H weights for each query and key, which it neither takes nor returns


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the embedded models")
    parser.add_argument(
        "--imported", type=Path, default=IMPORTED, help="a repository of imported models; make gpu-import makes it"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs/gpu.md", help="the page to write")
    parser.add_argument("--seconds", type=float, default=300, help="graphs that are not reached by then are not run")
    options = parser.parse_args(arguments)
    try:
        engine = OnnxRuntime("cuda", threads=0)
        graphs = [*_graphs(options.models), *_graphs(options.imported)]
    except (DeviceError, OSError) as error:
        sys.stderr.write(f"make gpu: {error}; nothing was written\n")
        return 1
    began = time.monotonic()
    trials, loads = try_devices(options.models, TEXT_MODEL)
    trials.append(_mid_run(engine, graphs))
    results, skipped = run_graphs(graphs, CUDA, began + options.seconds)
    report = Report(versions(), results, trials, loads, skipped, time.monotonic() - began)
    options.out.write_text(report.page())
    sys.stdout.write(f"wrote {options.out}\n")
    for failure in report.failures():
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if report.failures() else 0


def run_graphs(graphs: Sequence[GraphFile], provider: str, end: float) -> tuple[list[GraphResult], list[str]]:
    """Prove graphs until a time of the monotonic clock; return the results and the names of those not reached."""
    results: list[GraphResult] = []
    for index, graph in enumerate(graphs):
        if time.monotonic() > end:
            return results, [left.name for left in graphs[index:]]
        results.append(prove(graph, provider))
        sys.stdout.write(f"{graph.name}: {results[-1].failure or 'proven'}\n")
    return results, []


def _graphs(models: Path) -> Iterator[GraphFile]:
    """Yield the graphs of each version of a repository.

    Raises:
        FileNotFoundError: it has none.
    """
    versions_ = sorted(path.parent for path in models.glob("*/*/manifest.json"))
    if not versions_:
        raise FileNotFoundError(f"{models} has no versions of models; `make gpu-import` makes an imported one")
    for version in versions_:
        yield from version_graphs(version)


def _mid_run(engine: OnnxRuntime, graphs: Sequence[GraphFile]) -> Trial:
    (large,) = (graph for graph in graphs if graph.name == LARGE)
    memory = memory_bytes("memory.total")
    if not memory:
        return Trial("more than the device's memory", "not tried: nvidia-smi does not tell the memory", passed=False)
    return fail_in_mid_run(engine, large.content, memory)


if __name__ == "__main__":
    sys.exit(main())
