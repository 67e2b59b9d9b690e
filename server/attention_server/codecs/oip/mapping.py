"""Open Inference Protocol messages to and from the domain: a dense batch is a batch of sequences."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from attention_proto.stages import PREDICTIONS, STAGES

from attention_server.codecs.document import fields
from attention_server.codecs.oip import padding, rules
from attention_server.codecs.oip.messages import InferRequest, InferResponse, OutputTensor
from attention_server.codecs.oip.padding import BatchLengths
from attention_server.domain.limits import Limits
from attention_server.domain.messages import (
    Alignment,
    Array,
    OutputSpec,
    Prediction,
    Request,
    Response,
    Result,
    TopK,
)
from attention_server.errors import InvalidRequest, TooLarge


def to_domain(infer: InferRequest, limits: Limits) -> Request:
    """Convert a request.

    Raises:
        InvalidRequest: an input, output or parameter is unknown, or of the wrong type or shape.
        TooLarge: the batch has more sequences than a request may have.
    """
    parameters = rules.request_parameters(infer)
    fields(dict(infer.inputs), "inputs", padding.INPUTS)
    inputs = padding.without_columns(infer.inputs)
    mask = rules.mask_of(parameters, has_tensors=not infer.inputs.keys().isdisjoint(padding.MASKS))
    layers = rules.mask_layers(parameters)
    memory = rules.memory_id(parameters)
    options = rules.output_options(infer)
    return Request(
        model=infer.model,
        version=infer.version,
        inputs=tuple(padding.split(inputs, memory, limits, rules.truncation(parameters), layers)),
        outputs=tuple(
            rules.output_spec(requested.name, own, f"outputs[{i}]")
            for i, (requested, own) in enumerate(zip(infer.outputs, options, strict=True))
            if rules.is_computed(requested.name)
        ),
        mask=mask,
        ablate=rules.ablations(parameters),
        score_temperature=rules.score_temperature(parameters),
    )


def from_domain(response: Response, infer: InferRequest, limits: Limits) -> InferResponse:
    """Convert a response: the requested outputs in the request's order, padded to the longest sequence with zeros.

    Raises:
        TooLarge: the padded response is over the limit.
        InvalidRequest: the request names tokens, but sent no text.
    """
    options = rules.output_options(infer)
    specs = {
        requested.name: rules.output_spec(requested.name, own, "")
        for requested, own in zip(infer.outputs, options, strict=True)
    }
    lengths = padding.batch_lengths(infer.inputs, rules.memory_id(infer.parameters))
    dense: dict[str, Array] = {}
    size = 0
    for ragged in _ragged_outputs(list(response.each()), specs, lengths):
        shape = ragged.dense_shape()
        size += len(ragged.arrays) * math.prod(shape) * ragged.arrays[0].itemsize
        if size > limits.answer_bytes:
            raise TooLarge(
                f"the answer would be at least {size} bytes, padded to the longest sequence; {limits.answer_bytes} may "
                "be sent: ask for less, or send fewer sequences, of more equal lengths, in one request",
                field="outputs",
            )
        dense[ragged.name] = padding.stack(ragged.arrays, shape, ragged.fill)
    outputs = _requested(dense, infer) if infer.outputs else (OutputTensor(name, x, None) for name, x in dense.items())
    told = {name: infer.parameters[name] for name in rules.TOLD if name in infer.parameters}
    return InferResponse(response.model, response.version, infer.id, tuple(outputs), told)


class _RaggedOutput(NamedTuple):
    """An output before padding: one array for each sequence.

    Attributes:
        name: the output's name.
        arrays: arrays of equal rank and type.
        least_shape: lower bounds of the padded lengths; missing trailing dimensions have none.
        fill: the padding's value.
    """

    name: str
    arrays: list[Array]
    least_shape: tuple[int, ...]
    fill: object

    def dense_shape(self) -> tuple[int, ...]:
        """Return the shape that every array is padded to."""
        return tuple(map(max, zip_longest(*(array.shape for array in self.arrays), self.least_shape, fillvalue=0)))


def _ragged_outputs(
    results: Sequence[Result], specs: Mapping[str, OutputSpec], lengths: BatchLengths
) -> Iterator[_RaggedOutput]:
    for name, first in results[0].outputs.items():
        least = _least_shape(specs.get(name) or specs.get(name.rpartition("@")[0]) or OutputSpec(name), lengths)
        values: list[Any] = [result.outputs[name] for result in results]
        if isinstance(first, TopK):
            common = np.result_type(*(top.indices.dtype for top in values))
            yield _RaggedOutput(f"{name}.indices", [top.indices.astype(common) for top in values], least, 0)
            yield _RaggedOutput(f"{name}.values", [top.values for top in values], least, 0)
        elif isinstance(first, Alignment):
            yield _RaggedOutput(name, [np.array(each.pharaoh, object) for each in values], (), "")
        else:
            yield _RaggedOutput(name, values, least, 0)
    yield from _predictions(results)
    for name, truncated in zip(rules.TOKENS, rules.TRUNCATED, strict=True):
        tokens = [getattr(result, name) for result in results]
        if all(each is not None for each in tokens):
            yield _RaggedOutput(name, [_texts(each.shown) for each in tokens], (), "")
            yield _RaggedOutput(truncated, [np.array(each.truncated, np.int64) for each in tokens], (), 0)


def _predictions(results: Sequence[Result]) -> Iterator[_RaggedOutput]:
    if results[0].predictions is None:
        return
    rows = [result.predictions or () for result in results]
    yield _RaggedOutput(f"{PREDICTIONS}.name", [_texts(each.name for each in row) for row in rows], (), "")
    yield _RaggedOutput(f"{PREDICTIONS}.label", [_texts(each.label for each in row) for row in rows], (), "")
    probabilities: list[Array] = [np.array([each.probability for each in row], np.float32) for row in rows]
    yield _RaggedOutput(f"{PREDICTIONS}.probability", probabilities, (), 0)
    indices: list[Array] = [np.array([-1 if each.row is None else each.row for each in row], np.int64) for row in rows]
    yield _RaggedOutput(f"{PREDICTIONS}.row", indices, (), -1)
    yield _RaggedOutput(f"{PREDICTIONS}.id", [np.array([each.id for each in row], np.int64) for row in rows], (), 0)
    if any(each.top for row in rows for each in row):
        yield from _candidates(rows)


def _candidates(rows: Sequence[Sequence[Prediction]]) -> Iterator[_RaggedOutput]:
    """Yield the most probable labels of predictions, each [N, k]; predictors with fewer labels are padded."""
    longest = max(len(each.top) for row in rows for each in row)
    for part, dtype, fill in (("id", np.int64, 0), ("label", object, ""), ("probability", np.float32, 0)):
        arrays: list[Array] = []
        for row in rows:
            array = np.full((len(row), longest), fill, dtype)
            for values, each in zip(array, row, strict=True):
                values[: len(each.top)] = [getattr(candidate, part) for candidate in each.top]
            arrays.append(array)
        yield _RaggedOutput(f"{PREDICTIONS}.top.{part}", arrays, (), fill)


def _least_shape(spec: OutputSpec, lengths: BatchLengths) -> tuple[int, ...]:
    """Return the least padded shape of a stage: as long as the inputs sent, even if every sequence is shorter."""
    stage = STAGES[spec.name]
    rows = 0 if spec.rows else lengths.keys if stage.is_of_keys else lengths.queries
    columns = lengths.keys if stage.is_pairwise and not (spec.top_k or spec.spans) else 0
    has = (stage.head_axis and spec.fold == "none", spec.pool == "none" and not stage.sums_rows, stage.column_axis)
    return tuple(length for length, there in zip((0, rows, columns), has, strict=True) if there)


def _texts(texts: Iterable[str]) -> Array:
    return np.array(list(texts), dtype=object)


def _requested(dense: Mapping[str, Array], infer: InferRequest) -> Iterator[OutputTensor]:
    """Yield the tensors of each requested output once: itself, its parts (NAME.PART), or its layers (NAME@LAYER)."""
    sent: set[str] = set()
    for i, requested in enumerate(infer.outputs):
        stems = (f"{requested.name}.", f"{requested.name}@")
        names = [name for name in dense if name == requested.name or name.startswith(stems)]
        if not names:  # the service has refused unknown stages; tokens are left
            raise InvalidRequest("there are none: they are those of a text that was sent", field=f"outputs[{i}]")
        for name in names:
            if name not in sent:
                sent.add(name)
                yield OutputTensor(name, dense[name], requested)
