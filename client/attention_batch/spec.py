"""The outputs of a run, as output specs of the contract and tokens, and the model version that computes these.

output:mean,weights,predictions
[{"name": "output", "pool": "mean"}, {"name": "weights", "reduce": "mean", "top_k": 4}]
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from attention_client import Ablation, AttendResult, InvalidRequest, OutputSpec
from attention_client.wire.request import attend_request
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.offers import NotOfferedError, chosen_layers, chosen_pairs, folded_layers, lengths
from attention_proto.stages import OPTIONS as OUTPUT_OPTIONS
from attention_proto.stages import PREDICTIONS, STAGES, Axis, Stage

from attention_batch.errors import Refused

Dims = tuple[int | None, ...]  # None where it differs from row to row

TOKENS = ("tokens", "memory_tokens")
TRUNCATED = ("truncated_tokens", "memory_truncated_tokens")
OPTIONS = {"name", "alias", *OUTPUT_OPTIONS}


@dataclass(frozen=True)
class Column:
    """One column of the output.

    Attributes:
        name: in the file and in the server's answer.
        kind: `tensor`, `top_k`, `alignment`, `predictions`, `tokens` or `count`.
        dims: of the tensor in a row; None for an axis that differs from row to row.
        dtype: of the tensor's numbers.
        has_top: whether predictions have the most probable labels.
        as_extension: whether a tensor of one shape is a `fixed_shape_tensor` in Parquet.
    """

    name: str
    kind: Literal["tensor", "top_k", "alignment", "predictions", "tokens", "count"]
    dims: Dims = ()
    dtype: "np.dtype[Any]" = np.dtype(np.float32)  # noqa: RUF009 # a dtype never changes
    has_top: bool = False
    as_extension: bool = False

    @property
    def is_extension(self) -> bool:
        """Whether the column, or each part of it, is a `fixed_shape_tensor` in Parquet."""
        return self.as_extension and None not in self.dims

    def take(self, result: AttendResult) -> Any:
        """Return this column's part of an answer: an array, a `TopK`, predictions, tokens, a count, links as text."""
        if self.kind == "predictions":
            return result.predictions
        if self.kind in ("tokens", "count"):
            return getattr(result, self.name)
        if self.kind == "alignment":
            return result[self.name].pharaoh
        return result[self.name]


@dataclass(frozen=True)
class Outputs:
    """The requested outputs.

    Attributes:
        wire: the specs of every request.
        columns: the columns of the file, in order.
    """

    wire: tuple[OutputSpec, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class ScoringSpec:
    """The model version and the outputs for every row of a run.

    Attributes:
        model, version: the model version that answers.
        manifest: the SHA-256 of that version's manifest, see `digest`.
        outputs: the outputs to request, and the columns to write.
        ablate: the heads that are switched off.
    """

    model: str
    version: int
    manifest: str
    outputs: Outputs
    ablate: tuple[Ablation, ...] = ()


def parse(text: str) -> list[dict[str, Any]]:
    """Read `--outputs`: names with commas, `NAME:POOL` for pooled ones, or a JSON list of specs.

    Raises:
        Refused: the text is neither names nor JSON, or a spec has an unknown option.
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
    """Return the outputs of specs, for one model.

    Args:
        specs: as `parse` returns; empty for `output`, and `predictions` if the model has a prediction head.
        manifest: of the model.
        reads_text: whether the rows are texts.

    Raises:
        Refused: a spec has no meaning for this model. The server checks the rest.
    """
    chosen = list(specs) or [{"name": "output"}, *([{"name": PREDICTIONS}] if manifest.predictors else [])]
    wire: list[OutputSpec] = []
    columns: list[Column] = []
    for spec in chosen:
        name = str(spec["name"])
        if name in TOKENS + TRUNCATED:
            if not reads_text:
                raise Refused(f"--outputs: rows of vectors have no {name}")
            columns.append(Column(name, "tokens" if name in TOKENS else "count"))
        elif name == PREDICTIONS:
            wire.append(_output_spec(spec))
            columns.append(Column(PREDICTIONS, "predictions", has_top=bool(wire[-1].top)))
        else:
            output = _output_spec(spec)
            wire.append(output)
            columns.extend(_columns(output, manifest))
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1 or name == "id":
            raise Refused(f'--outputs: the name {name!r} is taken; give this output another "as"')
    if all(column.kind in ("tokens", "count") for column in columns):
        raise Refused("--outputs: tokens alone need no scoring; ask for an output besides")
    return Outputs(tuple(wire), tuple(columns))


def _check(spec: object, field: str) -> None:
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise Refused(f'{field}: must be an object with a "name", such as {{"name": "weights", "top_k": 4}}')
    if unknown := sorted(spec.keys() - OPTIONS):
        raise Refused(f"{field}: has no option {unknown[0]!r}; there are {', '.join(sorted(OPTIONS))}")


def _output_spec(spec: Mapping[str, Any]) -> OutputSpec:
    """Return a spec as the client sends it.

    Raises:
        Refused: an option cannot be encoded, or has no meaning.
    """
    options = {"alias" if name == "as" else name: value for name, value in spec.items()}
    output = OutputSpec(**options)
    try:
        attend_request("", [], [output], 0, token_offsets=False)
    except InvalidRequest as error:
        raise Refused(f"--outputs: {spec['name']}: {error.message}") from error
    return output


def _columns(output: OutputSpec, manifest: pb.Manifest) -> Iterator[Column]:
    dtype = np.dtype(np.float16 if output.data_type == "FP16" else np.float32)
    name = output.alias or output.name
    stage = STAGES.get(output.name)
    kind: Literal["tensor", "top_k", "alignment"] = "top_k" if output.top_k else "tensor"
    kind = "alignment" if stage is not None and stage.is_links else kind
    if stage is None:  # the server refuses a name that is no stage
        yield Column(name, kind, (), dtype)
        return
    try:
        if pairs := tuple(output.pairs):
            (layer, _), *_ = chosen_pairs(stage, pairs, manifest)
            yield Column(name, kind, _dims(output, stage, layer, manifest), dtype)
            return
        if output.fold:
            layer = folded_layers(stage, output.fold, tuple(output.layers), manifest)[-1]
            yield Column(name, kind, _dims(output, stage, layer, manifest), dtype)
            return
        layers = chosen_layers(stage, tuple(output.layers), manifest)
    except NotOfferedError as error:
        raise Refused(f"--outputs: {output.name}: {error}") from error
    for layer in layers:
        own = f"{name}@{manifest.layers[layer].name}" if len(layers) > 1 else name
        yield Column(own, kind, _dims(output, stage, layer, manifest), dtype)


def _dims(output: OutputSpec, stage: Stage, layer: int, manifest: pb.Manifest) -> Dims:
    """Return the shape of an output of one sequence; the server refuses options that the stage does not take."""
    heads = 1 if output.reduce else len(tuple(output.pairs)) or len(tuple(output.heads))
    known: dict[Axis, int | None] = dict(lengths(stage, manifest.layers[layer], manifest))
    if stage.head_axis and output.fold:
        del known[stage.head_axis]
    elif stage.head_axis and heads:
        known[stage.head_axis] = heads
    if stage.column_axis and output.spans:
        known[stage.column_axis] = len(output.spans)
    known[stage.row_axis] = len(tuple(output.rows))
    if output.pool or stage.sums_rows:
        del known[stage.row_axis]
    return tuple(length or None for length in known.values())


def digest(model: pb.Model) -> str:
    """Return the SHA-256 of a version's manifest, which has the hashes of its files: the identity of the version."""
    return hashlib.sha256(model.manifest.SerializeToString(deterministic=True)).hexdigest()
