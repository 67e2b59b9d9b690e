"""8-bit matrices: a version that is faster on a CPU, written only when its error is known and within bounds.

A matrix is rounded to 8 bits column by column, and so is, as it comes, what it is multiplied with, row by row:

    x . M  ~  (round(127 x / max|x|) . round(64 M / max|M|)) * max|x| * max|M| / (127 * 64)

with max|x| of each row and max|M| of each column. Attention itself stays in float32. A row's own maximum, and not that
of the whole tensor as in onnxruntime's `quantize_dynamic`, keeps the promises of the service: no position's answer
depends on its neighbours in a batch, on a hidden key, or on the future. See docs/quantization.md for what both cost.
"""

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from attention_proto.attention.v1.attention_pb2 import (
    AttendGraph,
    File,
    Layer,
    Manifest,
    Quantization,
    QuantizationError,
)
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from tokenizers import Tokenizer

from attention_export.graphs import _strip
from attention_export.manifest import ManifestError, add_file, read_manifest, write_manifest
from attention_export.verify import run, session

METHOD = "int8 matrices by column, 7 bits used; vectors by row, as they come"
BITS = 8
VECTOR_STEPS = 127
# Not 127: AVX2 without VNNI adds two products in 16 bits, which 255 * 64 * 2 fits and 255 * 127 * 2 does not.
MATRIX_STEPS = 64
ZERO_POINT = 128  # these kernels take vectors unsigned
SMALLEST = np.float32(1e-30)  # stands in for the maximum of a row of zeros

SECONDS_TO_TIME = 5.0
TIMED = 32  # sequences, spread over the data
FEWEST_ROUNDS, MOST_ROUNDS = 5, 101

VECTORS = ("vectors", "memory_vectors", "value_vectors")
TEXTS = ("text", "memory_text")

Array = NDArray[Any]
Progress = Callable[[str], None]


class PastBound(ValueError):
    """The int8 version is too far from float32, or not fast enough; it was not written."""


class BadData(ValueError):
    """A row of the data is nothing that the model takes."""


@dataclass(frozen=True)
class Bounds:
    """What an int8 version must keep to be written.

    Attributes:
        weight_error: the largest |error| of a weight, which is between 0 and 1.
        output_error: the largest |error| of an output, as a part of the largest |output|.
        speedup: float32's time / int8's; 0 is any.
    """

    weight_error: float = 0.05
    output_error: float = 0.05
    speedup: float = 1.1

    def check(self, found: Quantization) -> None:
        """Hold what was measured against the bounds.

        Raises:
            PastBound: it is past one; gives every figure.
        """
        outputs = max(error.relative for error in found.errors if error.stage == "output")
        weights = max(error.largest for error in found.errors if error.stage == "weights")
        # `not <=`, for NaN is not <= anything.
        if not (outputs <= self.output_error and weights <= self.weight_error and found.speedup >= self.speedup):
            raise PastBound(
                f"not written: weights are off by up to {weights:.3g} (bound {self.weight_error:g}), outputs by up to "
                f"{outputs:.2%} of the largest (bound {self.output_error:.2%}), and int8 is {found.speedup:.2f} x as "
                f"fast as float32 (bound {self.speedup:g}): {1e3 * found.int8_seconds:.3f} against "
                f"{1e3 * found.float32_seconds:.3f} ms a sequence"
            )


@dataclass(frozen=True)
class Example:
    """One sequence of the data: each part [1, length, width], or tokens [1, length]; None where it has none."""

    query: Array | None = None
    key: Array | None = None
    value: Array | None = None
    tokens: Array | None = None
    memory_tokens: Array | None = None

    @property
    def positions(self) -> int:
        """T."""
        asking = self.query if self.tokens is None else self.tokens
        assert asking is not None
        return int(asking.shape[1])


def quantize(
    folder: Path,
    data: Path,
    version: int,
    *,
    repository: Path | None = None,
    bounds: Bounds | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Make an int8 version, measure it against float32, and only then give it its place in the repository.

    The matrices of `project` and of every graph that attends on a CPU become int8. Fronts, heads, what stands between
    layers, and the graph for CUDA stay as they are. The same version gives the same graphs.

    Args:
        folder: a float32 version's folder.
        data: what to measure on; see `read_data`.
        version: the version to write, 1 or above.
        repository: the folder of models to write to; the one that `folder` lies in when absent.
        bounds: what it must keep.
        progress: told what is being done.

    Returns:
        The new version's folder.

    Raises:
        FileExistsError: the version is there already.
        ManifestError: the folder is not what its manifest says, is int8 already, or has no matrices.
        BadData: the data are nothing that the model takes.
        PastBound: it is not worth it; nothing is written.
    """
    folder = folder.resolve()
    manifest = read_manifest(folder)
    _check_source(folder, manifest)
    target = (repository or folder.parent.parent) / folder.parent.name / str(version)
    if target.exists():
        raise FileExistsError(f"{target} exists; versions are never overwritten: choose another, or remove it")
    contents = {file.name: _read_file(folder, file) for file in _files(manifest)}
    examples = read_data(data, folder, manifest)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".quantize-") as scratch:
        written = Path(scratch) / "version"
        written.mkdir()
        progress(f"quantizing {folder}")
        _write_files(written, manifest, contents)
        progress(f"measuring on {len(examples)} sequences")
        manifest.quantization.CopyFrom(_measure(folder, written, manifest, examples))
        manifest.ClearField("parity")
        (bounds or Bounds()).check(manifest.quantization)
        write_manifest(written, manifest)
        shutil.move(written, target)
    progress(f"wrote {target}")
    return target


def to_int8(content: bytes) -> bytes:
    """Turn each product of an ONNX graph with a constant float32 matrix [in, out] into one in 8 bits.

    Raises:
        onnx.checker.ValidationError: the result is no valid ONNX model.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    matrices = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes: list[NodeProto] = []
    added: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and matrices.get(node.input[1], np.empty(0)).ndim == 2:
            nodes += _product(node, matrices[node.input[1]], added)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _replace_constants(graph, added)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def read_data(path: Path, folder: Path, manifest: Manifest) -> list[Example]:
    """Read the sequences to measure on.

    Args:
        path: `.npy`, floats [N, T, D] or [T, D], which are queries; or JSON lines, a sequence each: `text` or `vectors`
            [T, D], and where it attends to another sequence `memory_text` or `memory_vectors` [S, Dk]; values that are
            not the keys are `value_vectors` [S, Dv]. Other fields are passed over, so that data to train on will do.
        folder: the version's folder, for its tokenizers.
        manifest: the version's manifest.

    Raises:
        BadData: a row is nothing that the model takes; names it.
        OSError: the file cannot be read.
    """
    reader = _Reader(folder, manifest)
    rows = _array_rows(path) if path.suffix == ".npy" else _json_rows(path)
    examples = [reader.read(where, row) for where, row in rows]
    if not examples:
        raise BadData(f"{path} has no sequences")
    return examples


class _Served:
    """A version's graphs on the CPU, one thread each: what the server runs for a sequence."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._text = manifest.text
        self._layers = manifest.layers
        files = [each.file for layer in manifest.layers for each in _cpu_graphs(layer)]
        files += [file for layer in manifest.layers for file in (layer.project, layer.after)]
        files += [manifest.text.front, manifest.text.memory_front]
        self._sessions = {file.name: session(folder / file.name) for file in files if file.name}

    def run(self, example: Example) -> None:
        """Compute the output of the last layer, in the cheapest way."""
        for _ in self.stages(example, every_graph=False):
            pass

    def stages(self, example: Example, *, every_graph: bool) -> Iterator[list[dict[str, Array]]]:
        """Yield, layer by layer, what each of its graphs gives, or the cheapest alone."""
        query, key, value = self._read(example)
        for layer in self._layers:
            projected = self._run(layer.project.name, key=key, value=value)
            graphs = _cpu_graphs(layer)[: None if every_graph else 1]
            found = [self._attend(graph, query, projected) for graph in graphs]
            yield found
            if layer.HasField("after"):
                query = key = value = self._run(layer.after.name, query=query, output=found[0]["output"])["next"]

    def _read(self, example: Example) -> tuple[Array, Array, Array]:
        """Return query, key and value: what was given, what a front makes of tokens, or what stands in for them."""
        query, key, value = example.query, example.key, example.value
        if example.tokens is not None:
            front = self._run(self._text.front.name, tokens=example.tokens)
            query = front["query"]
            key, value = (front.get("key"), front.get("value")) if key is None else (key, value)
        if example.memory_tokens is not None:
            front = self._run(self._text.memory_front.name, tokens=example.memory_tokens)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        return query, key, key if value is None else value

    def _attend(self, graph: AttendGraph, query: Array, projected: dict[str, Array]) -> dict[str, Array]:
        """Run a graph; one that needs a mask has one that hides nothing."""
        pairs = (1, 1, query.shape[1], projected["k"].shape[1])
        mask = {"mask": np.zeros(pairs, np.float32)} if graph.mask else {}
        return self._run(graph.file.name, query=query, **projected, **mask)

    def _run(self, name: str, **feeds: Array) -> dict[str, Array]:
        return run(self._sessions[name], feeds)


class _Reader:
    """Reads rows of data as one model takes them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        text, first = manifest.text, manifest.layers[0]
        self._crosses = manifest.block == "cross_attention"
        self._query = first.query_dim
        self._key = first.key_dim or first.query_dim
        self._value = first.value_dim or self._key
        memory_file = text.memory_tokenizer.name or text.tokenizer.name
        self._words, self._memory_words = (
            _Words(folder / file, longest, allow_unknown=text.allow_unknown) if front.name else None
            for front, file, longest in (
                (text.front, text.tokenizer.name, text.max_tokens),
                (text.memory_front, memory_file, text.max_memory_tokens),
            )
        )

    def read(self, where: str, row: dict[str, Any]) -> Example:
        """Read a row.

        Raises:
            BadData: the model cannot take it.
        """
        given = {name: row[name] for name in (*TEXTS, *VECTORS) if row.get(name) is not None}
        self._check_fields(where, given)
        vectors, key, value = (
            _vectors(f"{where}: {name}", given[name], width) if name in given else None
            for name, width in zip(VECTORS, (self._query, self._key, self._value), strict=True)
        )
        _check_lengths(where, key, value)
        tokens, memory_tokens = (
            words.read(f"{where}: {name}", given[name]) if words is not None and name in given else None
            for name, words in zip(TEXTS, (self._words, self._memory_words), strict=True)
        )
        return Example(vectors, key, value, tokens, memory_tokens)

    def _check_fields(self, where: str, given: dict[str, Any]) -> None:
        attends_to_another = bool(given.keys() & {"memory_text", "memory_vectors"})
        if ("text" in given) == ("vectors" in given):
            raise BadData(f"{where}: give either text or vectors; it has {', '.join(given) or 'neither'}")
        if given.keys() >= {"memory_text", "memory_vectors"} or (
            "value_vectors" in given and "memory_vectors" not in given
        ):
            raise BadData(f"{where}: give memory_text, or memory_vectors and value_vectors; it has {', '.join(given)}")
        for name, words in zip(TEXTS, (self._words, self._memory_words), strict=True):
            if name in given and words is None:
                raise BadData(f"{where}: the model reads no {name}; give {name.replace('text', 'vectors')}")
        if self._crosses and not attends_to_another:
            raise BadData(f"{where}: cross_attention attends to another sequence; give memory_text or memory_vectors")
        if "vectors" in given and not attends_to_another and self._query != self._key:
            raise BadData(f"{where}: keys are not as wide as queries; give memory_vectors")
        keys_given = "memory_vectors" in given or given.keys() == {"vectors"}
        if keys_given and "value_vectors" not in given and self._key != self._value:
            raise BadData(f"{where}: values are not as wide as keys; give memory_vectors and value_vectors")


class _Words:
    """A tokenizer, and the longest text that its model reads; 0 is any."""

    def __init__(self, path: Path, longest: int, *, allow_unknown: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._longest = longest
        self._unknown = None if allow_unknown else json.loads(path.read_text())["model"].get("unk_token")

    def read(self, where: str, text: Any) -> Array:
        """Return the tokens, INT64 [1, T]."""
        if not isinstance(text, str):
            raise BadData(f"{where} must be a string, not {type(text).__name__}")
        encoding = self._tokenizer.encode(text)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if token == self._unknown:
                raise BadData(f"{where}: {text[start:end]!r} is not in the vocabulary")
        if not encoding.ids or len(encoding.ids) > (self._longest or len(encoding.ids)):
            raise BadData(f"{where} has {len(encoding.ids)} tokens; it needs 1 to {self._longest or 'any number of'}")
        return np.array([encoding.ids], np.int64)


@dataclass
class _Error:
    """The difference of a stage, so far."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    of: float = 0.0

    def add(self, exact: Array, found: Array) -> None:
        error = np.abs(found.astype(np.float64) - exact)
        self.largest = float(np.maximum(self.largest, error.max()))  # keeps a NaN, as max() does not
        self.total += float(error.sum())
        self.count += error.size
        self.of = max(self.of, float(np.abs(exact).max()))

    def record(self, layer: str, stage: str) -> QuantizationError:
        return QuantizationError(
            layer=layer,
            stage=stage,
            largest=self.largest,
            mean=self.total / self.count,
            relative=self.largest / self.of if self.largest else 0.0,
        )


def _check_source(folder: Path, manifest: Manifest) -> None:
    if manifest.HasField("quantization"):
        raise ManifestError(f"{folder} is int8 already; quantize the version it was made from")
    if not all(layer.HasField("project") for layer in manifest.layers):
        raise ManifestError(f"{folder} is a {manifest.block}, which has no matrices: there is nothing to quantize")


def _files(message: Message) -> Iterator[File]:
    """Yield every file that a manifest names."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for part in [value] if isinstance(value, Message) else value:
            if isinstance(part, File):
                yield part
            else:
                yield from _files(part)


def _read_file(folder: Path, file: File) -> bytes:
    try:
        content = (folder / file.name).read_bytes()
    except OSError as error:
        raise ManifestError(f"{folder / file.name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ManifestError(f"{folder / file.name} is not the file that its manifest names: its SHA-256 differs")
    return content


def _write_files(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    """Write every file of the version, and enter its hash in the manifest."""
    chosen = {graph.file.name for layer in manifest.layers for graph in _cpu_graphs(layer)}
    chosen |= {layer.project.name for layer in manifest.layers}
    for file in _files(manifest):
        content = contents[file.name]
        file.CopyFrom(add_file(folder, file.name, to_int8(content) if file.name in chosen else content))


def _cpu_graphs(layer: Layer) -> list[AttendGraph]:
    return [graph for graph in layer.attend if not graph.devices or "cpu" in graph.devices]


def _product(node: NodeProto, matrix: Array, added: dict[str, Array]) -> Iterator[NodeProto]:
    """Yield the nodes that stand for x [.., in] . matrix [in, out]; put the constants they need into `added`."""
    x, name, result = node.input[0], node.input[1], node.output[0]
    largest = np.maximum(np.abs(matrix).max(0), SMALLEST)  # [out]
    added[f"{name}_int8"] = np.rint(matrix / largest * MATRIX_STEPS).astype(np.int8)
    added[f"{name}_step"] = (largest / (MATRIX_STEPS * VECTOR_STEPS)).astype(np.float32)
    added |= {
        "int8_last_axis": np.array([-1], np.int64),
        "int8_smallest": np.array(SMALLEST),
        "int8_step": np.array(1 / VECTOR_STEPS, np.float32),
        "int8_zero_point": np.array(ZERO_POINT, np.uint8),
    }
    # Of two products with the same vectors, onnxruntime rounds them once: it merges equal nodes.
    yield _node("Abs", [x], f"{result}_abs")
    yield _node("ReduceMax", [f"{result}_abs", "int8_last_axis"], f"{result}_max", keepdims=1)
    yield _node("Max", [f"{result}_max", "int8_smallest"], f"{result}_largest")  # [.., 1]
    yield _node("Div", [x, f"{result}_largest"], f"{result}_scaled")
    yield _node("QuantizeLinear", [f"{result}_scaled", "int8_step", "int8_zero_point"], f"{result}_uint8")
    yield _node("MatMulInteger", [f"{result}_uint8", f"{name}_int8", "int8_zero_point"], f"{result}_int32")
    yield _node("Cast", [f"{result}_int32"], f"{result}_float", to=onnx.TensorProto.FLOAT)
    yield _node("Mul", [f"{result}_float", f"{name}_step"], f"{result}_by_column")
    yield _node("Mul", [f"{result}_by_column", f"{result}_largest"], result)


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return onnx.helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes)


def _replace_constants(graph: onnx.GraphProto, added: dict[str, Array]) -> None:
    """Put the new constants into a graph, and take those out that nothing reads any more."""
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in added.items())
    read = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _measure(folder: Path, written: Path, manifest: Manifest, examples: Sequence[Example]) -> Quantization:
    exact, rounded = _Served(folder, manifest), _Served(written, manifest)
    before, after = _seconds(exact, rounded, examples)
    return Quantization(
        method=METHOD,
        bits=BITS,
        source=f"{folder.parent.name}/{folder.name}",
        sequences=len(examples),
        positions=sum(example.positions for example in examples),
        errors=_errors(exact, rounded, manifest, examples),
        float32_seconds=before,
        int8_seconds=after,
        speedup=before / after,
    )


def _errors(
    exact: _Served, rounded: _Served, manifest: Manifest, examples: Sequence[Example]
) -> list[QuantizationError]:
    """Compare the stages of every layer, from every graph; each version's layers follow from its own layers before."""
    errors = {(layer.name, stage): _Error() for layer in manifest.layers for stage in ("output", "weights")}
    for example in examples:
        both = (served.stages(example, every_graph=True) for served in (exact, rounded))
        for layer, *found in zip(manifest.layers, *both, strict=True):
            for right, coarse in zip(*found, strict=True):
                for stage in right.keys() & {"output", "weights"}:
                    errors[layer.name, stage].add(right[stage], coarse[stage])
    return [error.record(layer, stage) for (layer, stage), error in errors.items()]


def _seconds(exact: _Served, rounded: _Served, examples: Sequence[Example]) -> tuple[float, float]:
    """Return seconds a sequence of both: the mean over sequences of each one's median, both taken in turn."""
    timed = examples[:: -(-len(examples) // TIMED)]
    pair = (exact, rounded)
    warm_up = sum(_timed(served, example) for example in timed for served in pair)
    rounds = int(np.clip(SECONDS_TO_TIME / warm_up, FEWEST_ROUNDS, MOST_ROUNDS))
    medians = []
    for example in timed:
        times = [[_timed(served, example) for served in pair] for _ in range(rounds)]
        medians.append([statistics.median(each) for each in zip(*times, strict=True)])
    before, after = np.mean(medians, axis=0)
    return float(before), float(after)


def _timed(served: _Served, example: Example) -> float:
    start = time.perf_counter()
    served.run(example)
    return time.perf_counter() - start


def _array_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise BadData(f"{path} is no .npy of numbers: {error}") from error
    sequences = array[None] if array.ndim == 2 else array
    if sequences.ndim != 3:
        raise BadData(f"{path} has the shape {list(array.shape)}; it must be [N, T, D] or [T, D]")
    for index, sequence in enumerate(sequences):
        yield f"{path}[{index}]", {"vectors": sequence}


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadData(f"{where} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise BadData(f"{where} must be an object with text or vectors, not {type(row).__name__}")
            yield where, row


def _vectors(where: str, given: Any, width: int) -> Array:
    """Return [1, length, width]."""
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            array = np.asarray(given, np.float32)
    except (TypeError, ValueError) as error:
        raise BadData(f"{where} is no list of equally long vectors of numbers") from error
    if array.ndim != 2 or not len(array) or array.shape[1] != width:
        raise BadData(f"{where} has the shape {list(array.shape)}; it must be [1 or more, {width}]")
    if not np.isfinite(array).all():
        raise BadData(f"{where} has a number that is not finite, at {np.argwhere(~np.isfinite(array))[0].tolist()}")
    return array[None]


def _check_lengths(where: str, key: Array | None, value: Array | None) -> None:
    if key is not None and value is not None and key.shape[1] != value.shape[1]:
        raise BadData(f"{where}: there are {key.shape[1]} memory_vectors and {value.shape[1]} value_vectors")
