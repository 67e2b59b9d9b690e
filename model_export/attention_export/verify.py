"""Comparison of graphs with PyTorch in float64: every graph, odd shapes, every kind of mask."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Manifest, Parity
from attention_proto.folder import TRANSFORMER
from attention_proto.masks import Mask, additive
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from tokenizers import Tokenizer
from torch import nn

from attention_export.blocks import DotProduct, Stages, join
from attention_export.manifest import ManifestError, read_block, read_files, read_manifest

ATOL, RTOL = 1e-5, 1e-4
SEED = 0

# Queries and keys: alike and unalike, one and many, and the longest of both.
LENGTHS = ((1, 1), (2, 2), (7, 2), (2, 7), (7, 64), (64, 64), (64, 1), (1, 512), (512, 7), (512, 512))
BATCHES = (1, 3)
MOST_PAIRS = 64 * 512  # with more queries x keys than this, one sequence at a time: float64 weights of many are large
TOKEN_LENGTHS = (1, 2, 7, 64, 512)
WIDTH, VALUE_WIDTH = 24, 10  # for blocks that take any

Arrays = Mapping[str, NDArray[Any]]
Reference = Callable[[Arrays], Arrays]


class Mismatch(ValueError):
    """An exported graph differs from its PyTorch block."""


@dataclass
class Report:
    """The number of compared cases and the largest error of each stage."""

    cases: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    limited_by_float32: int = 0

    def compare(
        self, where: str, found: Arrays, expected: Arrays, in_float32: Callable[[], Arrays] | None = None
    ) -> None:
        """Compare a graph's outputs with the reference.

        Args:
            where: the case, for the error message.
            found: the graph's outputs by name.
            expected: the reference in float64.
            in_float32: computes the reference in float32, for cases limited by float32's precision.

        Raises:
            Mismatch: a stage's error exceeds ATOL + RTOL * |expected| and twice the error of PyTorch's float32; or a
                stage is not finite or has another shape.
        """
        self.cases += 1
        for name, value in found.items():
            stage = expected[name]
            error = np.abs(value.astype(np.float64) - stage) if value.shape == stage.shape else np.array(np.inf)
            # `not all(<=)` also catches NaN.
            if not np.all(error <= ATOL + RTOL * np.abs(stage)):
                rounding = 0.0 if in_float32 is None else np.abs(in_float32()[name] - stage).max()
                if error.max() <= 2 * rounding:
                    self.limited_by_float32 += 1
                else:
                    raise Mismatch(
                        f"{where}: {name} {value.shape} is off by {error.max():.3g} from PyTorch's {stage.shape} in "
                        f"float64; PyTorch's own float32 is off by {rounding:.3g}"
                    )
            self.errors[name] = max(self.errors.get(name, 0.0), float(error.max()))

    def parity(self) -> Parity:
        """Return the record for the manifest."""
        return Parity(
            cases=self.cases,
            max_abs_error=self.errors,
            atol=ATOL,
            rtol=RTOL,
            limited_by_float32=self.limited_by_float32,
        )


def verify(folder: Path) -> Parity:
    """Verify a version's folder without the model that it was exported from.

    The reference of a block is PyTorch with the matrices of `block.safetensors`; the reference of front and head, which
    exist as graphs only, is ONNX's reference implementation.

    Raises:
        Mismatch: a graph differs from its reference.
        ManifestError: a file is missing, or its SHA-256 differs from the manifest's; or the version is int8, whose
            error is in its manifest; or it was imported, so that its reference is the checkpoint.
    """
    manifest = read_manifest(folder)
    if manifest.HasField("quantization"):
        raise ManifestError(
            f"{folder} is int8, made from {manifest.quantization.source}: it does not match PyTorch within {ATOL:g}. "
            f"How far it is from float32 was measured by `attention-export quantize`, and stands in its manifest under "
            f"`quantization`; what can be verified is {manifest.quantization.source}"
        )
    if manifest.block == TRANSFORMER:
        raise ManifestError(
            f"{folder} is an imported {manifest.architecture}: it was compared with its checkpoint when it was "
            f"imported ({manifest.parity.reference}), and without the checkpoint there is nothing to compare with; "
            "import it anew to repeat the comparison"
        )
    read_files(folder, manifest)  # checks the hashes
    report = Report()
    verify_block(read_block(folder, manifest, manifest.layers[0]), manifest, folder, report)
    graphs = {name: _reference_graph(folder / name) for name in _surroundings(manifest)}
    verify_surroundings(manifest, folder, graphs, report)
    return report.parity()


def verify_block(block: DotProduct, manifest: Manifest, folder: Path, report: Report) -> None:
    """Compare every graph of a block with PyTorch: the segment of projections before it, attention, and M_O.

    Raises:
        Mismatch: a graph differs from the block.
    """
    reference = copy.deepcopy(block).double().eval()
    layer, segments = manifest.layers[0], manifest.segments
    project = session(folder / segments[0].graph.name) if layer.HasField("weights") else None
    combine = session(folder / segments[1].graph.name) if len(segments) > 1 else None
    pool = session(folder / layer.pool.name) if layer.HasField("pool") else None
    graphs = [(graph, session(folder / graph.file.name)) for graph in layer.attend]
    rng = np.random.default_rng(SEED)
    for where, inputs in _inputs(rng, block):
        projected = {name: x.astype(np.float32) for name, x in _projected(reference, inputs).items()}
        if project is not None:
            projected = run(project, {"key": inputs["key"], "value": inputs["value"]})
            report.compare(segments[0].graph.name, projected, _projected(reference, inputs))
        for kind, mask in masks(rng, block.dims.heads, *(inputs[name].shape[1] for name in ("query", "key"))):
            added = None if mask is None else additive(mask, *(inputs[name].shape[1] for name in ("query", "key")))
            expected = _stages(reference, inputs, added, torch.float64)
            in_float32 = functools.partial(_stages, block.eval(), inputs, added, torch.float32)
            if combine is not None and added is None:
                found = run(combine, {"heads": expected["heads"].astype(np.float32)})
                report.compare(f"{segments[1].graph.name}, {where}", found, expected, in_float32)
            for graph, graph_session in graphs:
                if graph.mask == (added is not None):
                    found = run(graph_session, {"query": inputs["query"], **projected} | _mask_feed(graph, added))
                    report.compare(f"{graph.file.name}, {where}, {kind}", found, expected, in_float32)
            if pool is not None and added is None:
                rows = _pools(rng, inputs["query"].shape[1])
                found, means = run(pool, {**inputs, "pool": rows}), _means(rows, expected)
                rounded = functools.partial(lambda rows, stages: _means(rows, stages()), rows, in_float32)
                report.compare(f"{layer.pool.name}, {where}", found, means, rounded)


def _inputs(rng: np.random.Generator, block: DotProduct) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Yield query, key and value of every length in `LENGTHS` and batch size in `BATCHES`."""
    for batch, (queries, keys) in ((batch, lengths) for lengths in LENGTHS for batch in BATCHES):
        if batch == 1 or queries * keys <= MOST_PAIRS:
            yield f"batch {batch}, {queries} queries, {keys} keys", _vectors(rng, block, batch, queries, keys)


def verify_surroundings(manifest: Manifest, folder: Path, references: Mapping[str, Reference], report: Report) -> None:
    """Compare the graphs before and after the block with the references, at lengths up to the model's limit.

    Raises:
        Mismatch: a graph differs from its reference.
    """
    rng = np.random.default_rng(SEED)
    for name, reference in references.items():
        graph = session(folder / name)
        for feeds in _surrounding_feeds(rng, manifest, folder, name):
            report.compare(f"{name}, {[x.shape for x in feeds.values()]}", run(graph, feeds), reference(feeds))


def session(path: Path) -> ort.InferenceSession:
    """Open a graph on the CPU, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # onnxruntime infers wrong sizes after Attention, and warns about the difference
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def run(graph: ort.InferenceSession, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Run a graph; return its outputs by name."""
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(names, dict(feeds)), strict=True))


def torch_reference(module: nn.Module, names: tuple[str, ...]) -> Reference:
    """Return the module in float64 as a function of arrays."""
    exact = copy.deepcopy(module).double().eval()

    def compute(feeds: Arrays) -> Arrays:
        inputs = (torch.tensor(x) if x.dtype == np.int64 else _tensor(x) for x in feeds.values())
        with torch.no_grad():
            outputs = exact(*inputs)
        return dict(zip(names, (output.numpy() for output in outputs), strict=True))

    return compute


def masks(rng: np.random.Generator, heads: int, queries: int, keys: int) -> Iterator[tuple[str, Mask | None]]:
    """Yield one mask of every kind; the explicit ones mask some rows entirely."""
    allowed = rng.random((heads, queries, keys)) < 0.7
    allowed[:, rng.integers(queries)] = False
    bias = rng.standard_normal((1, queries, keys)).astype(np.float32)
    yield "no mask", None
    yield "causal top left", Mask(causal="top_left")
    yield "causal bottom right", Mask(causal="bottom_right")  # with more queries than keys, the first see nothing
    yield "window", Mask(window=(1, 2))
    yield "padding", Mask(allowed=np.arange(keys)[None, None, :] < max(1, keys // 2))
    yield "allowed, a mask a head", Mask(allowed=allowed)
    yield "nothing allowed", Mask(allowed=np.zeros((1, 1, 1), np.bool_))
    yield "bias", Mask(bias=bias)
    yield "all at once", Mask("bottom_right", (3, 0), allowed, bias)


def _pools(rng: np.random.Generator, queries: int) -> NDArray[Any]:
    """Return the coefficients of three means, [3, T]: the plain mean, the last row alone, and a random one."""
    last = np.arange(queries) == queries - 1
    return np.stack([np.full(queries, 1 / queries), last, rng.dirichlet(np.ones(queries))]).astype(np.float32)


def _means(pool: NDArray[Any], stages: Arrays) -> Arrays:
    """Return the means of the output's rows."""
    return {"output": pool.astype(np.float64) @ stages["output"]}


def _mask_feed(graph: AttendGraph, added: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    return {"mask": added[None]} if graph.mask and added is not None else {}


def _vectors(
    rng: np.random.Generator, block: DotProduct, batch: int, queries: int, keys: int
) -> dict[str, NDArray[Any]]:
    dims = block.dims
    query, value = dims.query or WIDTH, dims.value or dims.key or VALUE_WIDTH
    shapes = {"query": (queries, query), "key": (keys, dims.key or query), "value": (keys, value)}
    return {name: rng.standard_normal((batch, *shape)).astype(np.float32) for name, shape in shapes.items()}


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float64)


def _projected(reference: DotProduct, inputs: Arrays) -> Arrays:
    with torch.no_grad():
        k, v = reference.project(_tensor(inputs["key"]), _tensor(inputs["value"]))
    return {"k": k.numpy(), "v": v.numpy()}


def _stages(block: DotProduct, inputs: Arrays, added: NDArray[Any] | None, dtype: torch.dtype) -> Arrays:
    """Compute the stages in PyTorch, in the graphs' form: q and `heads` with heads side by side."""
    mask = None if added is None else torch.tensor(added, dtype=dtype)
    with torch.no_grad():
        stages: Stages = block(*(torch.tensor(inputs[name], dtype=dtype) for name in ("query", "key", "value")), mask)
    packed = {"q": join(stages.q), "heads": join(stages.heads), "output": stages.output, "weights": stages.weights}
    return {name: stage.numpy() for name, stage in packed.items()}


def _surroundings(manifest: Manifest) -> list[str]:
    files = (manifest.text.front, manifest.text.memory_front, manifest.head)
    return [file.name for file in files if file.name]


def _reference_graph(path: Path) -> Reference:
    evaluator = ReferenceEvaluator(str(path))

    def compute(feeds: Arrays) -> Arrays:
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))

    return compute


def _surrounding_feeds(
    rng: np.random.Generator, manifest: Manifest, folder: Path, name: str
) -> Iterator[dict[str, NDArray[Any]]]:
    if name == manifest.head.name:
        for rows in TOKEN_LENGTHS:
            yield {"output": rng.standard_normal((rows, manifest.layers[-1].output_dim)).astype(np.float32)}
        return
    text = manifest.text
    of_memory = name == text.memory_front.name
    file = text.memory_tokenizer if of_memory and text.HasField("memory_tokenizer") else text.tokenizer
    words = Tokenizer.from_file(str(folder / file.name)).get_vocab_size()
    longest = (text.max_memory_tokens if of_memory else text.max_tokens) or max(TOKEN_LENGTHS)
    for length in sorted({min(length, longest) for length in TOKEN_LENGTHS}):
        yield {"tokens": rng.integers(0, words, (2, length))}
