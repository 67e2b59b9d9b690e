"""Every graph of a version on one provider: against float64, where its nodes ran, and its time beside one CPU core."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
from attention_proto.folder import MANIFEST, parse_manifest
from attention_server.inference.engine.onnxruntime import CPU, provider_options
from attention_server.inference.model import served_files
from onnx import TensorProto

from benchmarks.gpu.inputs import Sizes, random_feeds
from benchmarks.gpu.placement import Placement, read_profile
from benchmarks.gpu.precision import Arrays, cast, reference, relative_error, retype

COMPARED = (Sizes(1, 1, 1), Sizes(2, 7, 5), Sizes(1, 64, 64))
TIMED = Sizes(8, 64, 64)
MOST_ERROR = 1e-4  # of an output's largest number, without TF32
TIMED_RUNS = 20
TIMED_SECONDS = 0.2


@dataclass(frozen=True)
class GraphFile:
    """A graph of a version.

    Attributes:
        name: `MODEL/FILE`.
        content: of the ONNX file.
        max_tokens: the greatest length of its tokens; 0 for any.
        served: whether the server runs it on a GPU; a graph for the CPU alone is tried, and may fail.
    """

    name: str
    content: bytes
    max_tokens: int
    served: bool


@dataclass
class GraphResult:
    """The findings about one graph.

    Attributes:
        name: `MODEL/FILE`.
        served: whether the server runs it on a GPU.
        placement: where its nodes ran; None if it did not run.
        error: the largest error against float64, as a share of the output's largest number.
        half_error: the same in float16; None where float16 does not run, with the reason in `half_failure`.
        seconds, half_seconds, core_seconds: the median of a run of `TIMED` on the device in float32 and float16, and on
            one CPU core; 0 if it was not measured.
        failure: why it is not proven; empty if it is.
    """

    name: str
    served: bool
    placement: Placement | None = None
    error: float = np.inf
    half_error: float | None = None
    half_failure: str = ""
    seconds: float = 0.0
    half_seconds: float = 0.0
    core_seconds: float = 0.0
    failure: str = ""


def version_graphs(folder: Path) -> Iterator[GraphFile]:
    """Yield the ONNX graphs of a version's folder, those that a GPU serves first."""
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    served = set(served_files(manifest, "cuda"))
    lengths = [each for each in (manifest.text.max_tokens, manifest.text.max_memory_tokens) if each]
    for path in sorted(folder.glob("*.onnx"), key=lambda path: (path.name not in served, path.name)):
        name = f"{folder.parent.name}/{path.name}"
        yield GraphFile(name, path.read_bytes(), min(lengths, default=0), path.name in served)


def prove(graph: GraphFile, provider: str) -> GraphResult:
    """Run a graph on a provider, and compare, place and time it. A failure is in the result, never raised."""
    result = GraphResult(graph.name, graph.served)
    try:
        _compare(graph, provider, result)
        _time(graph, provider, result)
    except Exception as error:  # noqa: BLE001 # onnxruntime raises many types; each is a finding about the graph
        result.failure = one_line(error)
        return result
    _try_half(graph, provider, result)
    assert result.placement is not None
    if not result.error <= MOST_ERROR:
        result.failure = f"is off by {result.error:.1e} of the largest number; the bound is {MOST_ERROR:g}"
    elif elsewhere := result.placement.floats_elsewhere:
        result.failure = f"computes numbers beside the device: {named(elsewhere)}"
    return result


def named(operators: Mapping[str, int]) -> str:
    """Return operators with their numbers, such as `Concat 2, Gather`."""
    return ", ".join(f"{name} {count}" if count > 1 else name for name, count in sorted(operators.items()))


def one_line(error: Exception) -> str:
    """Return an error's type and message in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def session(content: bytes, provider: str, threads: int = 0, profile: Path | None = None) -> ort.InferenceSession:
    """Open a graph on a provider, with the server's options for it.

    Raises:
        RuntimeError: onnxruntime opened it without the provider.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = [(name, provider_options(name)) for name in dict.fromkeys((provider, CPU))]
    opened = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    if provider not in opened.get_providers():
        raise RuntimeError(f"onnxruntime opened the graph without {provider}, on {opened.get_providers()}")
    return opened


def run(opened: ort.InferenceSession, feeds: Arrays) -> Arrays:
    """Run a graph; return its outputs by name. A failure is raised, without another try on the CPU."""
    opened.disable_fallback()
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(feeds)), strict=True))


def _compare(graph: GraphFile, provider: str, result: GraphResult) -> None:
    with TemporaryDirectory() as scratch:
        opened = session(graph.content, provider, profile=Path(scratch) / "profile")
        errors = []
        for sizes in COMPARED:
            feeds = random_feeds(graph.content, sizes, graph.max_tokens)
            errors.append(relative_error(run(opened, feeds), reference(graph.content, feeds)))
        result.error = max(errors)
        result.placement = Placement.of(read_profile(Path(opened.end_profiling())), provider)


def _time(graph: GraphFile, provider: str, result: GraphResult) -> None:
    feeds = random_feeds(graph.content, TIMED, graph.max_tokens)
    result.seconds = _median_seconds(session(graph.content, provider), feeds)
    result.core_seconds = _median_seconds(session(graph.content, CPU, threads=1), feeds)


def _try_half(graph: GraphFile, provider: str, result: GraphResult) -> None:
    try:
        half = session(retype(graph.content, TensorProto.FLOAT16).SerializeToString(), provider)
        feeds = random_feeds(graph.content, TIMED, graph.max_tokens)
        result.half_error = relative_error(run(half, cast(feeds, np.float16)), reference(graph.content, feeds))
        result.half_seconds = _median_seconds(half, cast(feeds, np.float16))
    except Exception as error:  # noqa: BLE001 # a graph without a kernel for float16 is a finding, not a failure
        result.half_failure = one_line(error)


def _median_seconds(opened: ort.InferenceSession, feeds: Arrays) -> float:
    return timed(lambda: run(opened, feeds))


def timed(call: Callable[[], object]) -> float:
    """Return the median seconds of a call, the first one left out."""
    call()
    found: list[float] = []
    while len(found) < TIMED_RUNS and sum(found) < TIMED_SECONDS:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return median(found)
