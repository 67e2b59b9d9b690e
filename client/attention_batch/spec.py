"""The outputs of a run: output specs of the contract, and the tokens.

output:mean,weights,predictions
[{"name": "output", "pool": "mean"}, {"name": "weights", "reduce": "mean", "top_k": 4}]
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from attention_client import AttendResult, InvalidRequest, OutputSpec
from attention_client.wire.request import attend_request
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.stages import OPTIONS as OUTPUT_OPTIONS
from attention_proto.stages import PREDICTIONS, STAGES

from attention_batch.errors import Refused

Dims = tuple[int | None, ...]  # None where it differs from row to row

TOKENS = ("tokens", "memory_tokens")
OPTIONS = {"name", "alias", *OUTPUT_OPTIONS}


@dataclass(frozen=True)
class Column:
    """One column of the output.

    Attributes:
        name: in the file, and in the server's answer.
        kind: `tensor`, `top_k`, `predictions` or `tokens`.
        dims: the tensor's, as it is written.
        dtype: of its numbers.
    """

    name: str
    kind: Literal["tensor", "top_k", "predictions", "tokens"]
    dims: Dims = ()
    dtype: "np.dtype[Any]" = np.dtype(np.float32)  # noqa: RUF009 # a dtype never changes

    def take(self, result: AttendResult) -> Any:
        """Return what this column has of an answer: an array, a `TopK`, predictions or tokens."""
        if self.kind == "predictions":
            return result.predictions
        if self.kind == "tokens":
            return result.tokens if self.name == "tokens" else result.memory_tokens
        return result[self.name]


@dataclass(frozen=True)
class Outputs:
    """What to ask the server for, and what to write of it."""

    wire: tuple[OutputSpec, ...]
    columns: tuple[Column, ...]


def parse(text: str) -> list[dict[str, Any]]:
    """Read `--outputs`: names with commas, `NAME:POOL` for pooled ones, or a JSON list of specs.

    Raises:
        Refused: it is neither.
    """
    if not text.lstrip().startswith("["):
        named = (item.strip().partition(":") for item in text.split(",") if item.strip())
        return [{"name": name, "pool": pool} if pool else {"name": name} for name, _, pool in named]
    try:
        specs = json.loads(text)
    except ValueError as error:
        raise Refused(f"--outputs: is no JSON: {error}") from error
    for i, spec in enumerate(specs):
        _check(spec, f"--outputs: [{i}]")
    return list(specs)


def resolve(specs: Iterable[Mapping[str, Any]], manifest: pb.Manifest, *, reads_text: bool) -> Outputs:
    """Decide what to ask a model for and which columns come of it.

    Args:
        specs: as `parse` returns them; empty for `output`, and `predictions` where the model has a head.
        manifest: the model's.
        reads_text: whether the rows are texts.

    Raises:
        Refused: a spec has no meaning for this model. What else is wrong with it the server says.
    """
    chosen = list(specs) or [{"name": "output"}, *([{"name": PREDICTIONS}] if manifest.predictors else [])]
    wire: list[OutputSpec] = []
    columns: list[Column] = []
    for spec in chosen:
        name = str(spec["name"])
        if name in TOKENS:
            if not reads_text:
                raise Refused(f"--outputs: rows of vectors have no {name}")
            columns.append(Column(name, "tokens"))
        elif name == PREDICTIONS:
            wire.append(OutputSpec(PREDICTIONS))
            columns.append(Column(PREDICTIONS, "predictions"))
        else:
            asked = _asked(spec)
            wire.append(asked)
            columns.extend(_columns(asked, manifest))
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1 or name == "id":
            raise Refused(f'--outputs: the name {name!r} is taken; give this output another "as"')
    if not any(column.kind != "tokens" for column in columns):
        raise Refused("--outputs: tokens alone need no scoring; ask for an output besides")
    return Outputs(tuple(wire), tuple(columns))


def _check(spec: object, field: str) -> None:
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise Refused(f'{field}: must be an object with a "name", such as {{"name": "weights", "top_k": 4}}')
    if unknown := sorted(spec.keys() - OPTIONS):
        raise Refused(f"{field}: has no option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))}")


def _asked(spec: Mapping[str, Any]) -> OutputSpec:
    """Return what the server is asked for.

    Raises:
        Refused: an option has no form on the wire, or no meaning.
    """
    options = {"alias" if name == "as" else name: value for name, value in spec.items()}
    asked = OutputSpec(**options)
    try:
        attend_request("", [], [asked], 0, token_offsets=False)
    except InvalidRequest as error:
        raise Refused(f"--outputs: {spec['name']}: {error.message}") from error
    return asked


def _columns(asked: OutputSpec, manifest: pb.Manifest) -> Iterator[Column]:
    dtype = np.dtype(np.float16 if asked.data_type == "FP16" else np.float32)
    layers = _layers(asked, manifest)
    for layer in layers:
        name = asked.alias or asked.name
        dims = _dims(asked, layer)
        kind: Literal["tensor", "top_k"] = "top_k" if asked.top_k else "tensor"
        yield Column(
            f"{name}@{layer.name}" if len(layers) > 1 else name,
            kind,
            dims,
            dtype,
        )


def _layers(asked: OutputSpec, manifest: pb.Manifest) -> list[pb.Layer]:
    wanted = tuple(asked.layers)
    if "*" in wanted:
        return list(manifest.layers)
    by_name = {layer.name: layer for layer in manifest.layers}
    for name in wanted:
        if name not in by_name:
            raise Refused(f"--outputs: there is no layer {name!r}; there is {', '.join(by_name)}")
    return [by_name[name] for name in wanted] or [manifest.layers[-1]]


def _dims(asked: OutputSpec, layer: pb.Layer) -> Dims:
    """Return the shape of an output of one sequence; the server refuses a name that is no stage."""
    stage = STAGES.get(asked.name)
    if stage is None:
        return ()
    heads = 1 if asked.reduce else len(tuple(asked.heads)) or None
    rows = len(tuple(asked.rows)) or None
    lengths = {
        "H": heads or layer.heads,
        "Hkv": heads or layer.key_value_heads,
        "Dh": layer.head_dim,
        "Dv": layer.value_head_dim,
        "D": layer.output_dim or layer.heads * layer.value_head_dim,
    }
    dims = {axis: lengths.get(axis) or None for axis in stage.axes} | {stage.row_axis: rows}
    if asked.pool:
        del dims[stage.row_axis]
    return tuple(dims.values())


@dataclass(frozen=True)
class ScoringSpec:
    """The model version and the outputs for every row of a run.

    Attributes:
        model, version: the model version that answers.
        manifest: the SHA-256 of that version's manifest, see `digest`.
        outputs: the outputs to request, and the columns to write.
    """

    model: str
    version: int
    manifest: str
    outputs: Outputs


def digest(model: pb.Model) -> str:
    """Return the SHA-256 of a version's manifest, which has the hashes of its files: the identity of the version."""
    return hashlib.sha256(model.manifest.SerializeToString(deterministic=True)).hexdigest()
