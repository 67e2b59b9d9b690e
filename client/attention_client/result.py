"""What comes back: the result of one sequence, read from the wire."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from attention_proto import codec
from attention_proto.attention.v1 import attention_pb2 as pb
from numpy.typing import NDArray

from attention_client.errors import NotRequested

Array = NDArray[Any]


class TopK(NamedTuple):
    """The k largest of each row, in descending order; of equal ones the lower index first, masked keys last."""

    indices: Array
    """Key positions, integers [H, T, k]; [H, k] of pooled rows."""
    values: Array
    """Their values, of the same shape."""


class Prediction(NamedTuple):
    """One answer of a model's head."""

    name: str
    """What was predicted."""
    label: str
    """The most probable label."""
    probability: float
    """Its probability, in 0..1."""
    row: int | None
    """The query position it was read from; None when read from the mean of all."""


class Span(NamedTuple):
    """Where a token stands in its text, in characters; end exclusive."""

    start: int
    end: int


@dataclass(frozen=True, repr=False, eq=False)
class AttendResult:
    """The answer for one sequence.

    Arrays are read-only views of the message: copy one to change it.

    Attributes:
        model: the model that answered.
        version: its version.
        outputs: the stages asked for, by name, in the order asked, without a batch dimension: an array, or a `TopK`
            where top_k was asked for.
        tokens: the query's tokens; empty where no text was sent.
        memory_tokens: the memory's tokens; empty where no memory text was sent.
        key_tokens: what the keys (the last axis of weights and scores) are called: the memory's tokens, or the
            sequence's own where it attends to itself; empty where keys have no names.
        predictions: what the model's head says, when asked for.
        token_offsets, memory_token_offsets: where each token stands in its text, when asked for.
    """

    model: str
    version: int
    outputs: Mapping[str, Array | TopK]
    tokens: tuple[str, ...] = ()
    memory_tokens: tuple[str, ...] = ()
    key_tokens: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    token_offsets: tuple[Span, ...] = ()
    memory_token_offsets: tuple[Span, ...] = ()

    @property
    def output(self) -> Array:
        """The combined output, [T, D]; [D] of pooled rows. Raises NotRequested when it was not asked for."""
        return self._array("output")

    @property
    def weights(self) -> Array:
        """The attention weights, [H, T, S], rows sum to 1. Raises NotRequested when they were not asked for as that."""
        weights = self._array("weights")
        if weights.ndim < 3:
            raise NotRequested("pooled weights were asked for: read them as result['weights']")
        return weights

    def __getitem__(self, name: str) -> Any:
        """Return one output, an array or a `TopK`; raises NotRequested, a KeyError, when it was not asked for."""
        if name not in self.outputs:
            here = ", ".join(self.outputs) or "no outputs"
            raise NotRequested(f"the result has no {name!r}: add it to `outputs` of the request (it holds {here})")
        return self.outputs[name]

    def _repr_html_(self) -> str | None:
        """Show the weights in a notebook; where they were not asked for, it shows what `repr` says."""
        from attention_client.display import viewer  # noqa: PLC0415  # it reads this module, and who draws nothing needs none

        try:
            return viewer.frame(self)
        except NotRequested:
            return None

    def _array(self, name: str) -> Array:
        value = self[name]
        if isinstance(value, TopK):
            raise NotRequested(f"only the largest {name} were asked for: read them as result[{name!r}]")
        return value  # type: ignore[no-any-return]  # whatever is no TopK is an array

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name} {summary(value)}" for name, value in self.outputs.items())
        return f"<AttendResult of {self.model} {self.version}: {outputs}; {len(self.predictions)} predictions>"


def read(request: pb.AttendRequest, response: pb.AttendResponse) -> list[AttendResult]:
    """Read the results, one for each sequence of the request, in order."""
    sequences: Iterable[pb.Sequence] = request.inputs
    if len(request.inputs) != len(response.results):  # some lie one behind the other
        sequences = [each for each in sequences for _ in range(len(each.lengths) or 1)]
    return [_read(response, *each) for each in zip(sequences, response.results, strict=True)]


def _read(response: pb.AttendResponse, sequence: pb.Sequence, result: pb.Result) -> AttendResult:
    to_itself = not (sequence.HasField("key") or sequence.HasField("memory_text") or sequence.memory)
    return AttendResult(
        model=response.model,
        version=response.version,
        outputs={output.name: _value(output) for output in result.outputs},
        tokens=tuple(result.tokens),
        memory_tokens=tuple(result.memory_tokens),
        key_tokens=tuple(result.tokens if to_itself else result.memory_tokens),
        predictions=tuple(map(_prediction, result.predictions)),
        token_offsets=tuple(Span(span.start, span.end) for span in result.token_offsets),
        memory_token_offsets=tuple(Span(span.start, span.end) for span in result.memory_token_offsets),
    )


def _value(output: pb.Output) -> Array | TopK:
    if output.HasField("top_k"):
        return TopK(codec.decode(output.top_k.indices), codec.decode(output.top_k.values))
    return codec.decode(output.tensor)


def _prediction(prediction: pb.Prediction) -> Prediction:
    row = prediction.row if prediction.HasField("row") else None
    return Prediction(prediction.name, prediction.label, prediction.probability, row)


def summary(value: Array | TopK) -> str:
    """Return an output's number format and shape, as `float32[3, 7, 7]`."""
    array, prefix = (value.values, "top ") if isinstance(value, TopK) else (value, "")
    return f"{prefix}{array.dtype}{list(array.shape)}"


def as_document(results: list[AttendResult]) -> dict[str, Any]:
    """Return the results of one call as JSON values, in the form of the REST response."""
    return {
        "model": results[0].model,
        "version": results[0].version,
        "results": [_result_document(result) for result in results],
    }


def _result_document(result: AttendResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "tokens": list(result.tokens),
        "memory_tokens": list(result.memory_tokens),
        "outputs": {name: _output_document(value) for name, value in result.outputs.items()},
        "predictions": [prediction_document(prediction) for prediction in result.predictions],
    }
    return {name: value for name, value in document.items() if value}


def _output_document(value: Array | TopK) -> dict[str, Any]:
    if isinstance(value, TopK):
        return {"indices": _output_document(value.indices), "values": _output_document(value.values)}
    return {"data_type": codec.NAMES[value.dtype], "shape": list(value.shape), "values": shortest(value)}


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values."""
    document = {**prediction._asdict(), "probability": shortest(np.asarray(prediction.probability, np.float32))}
    return {name: value for name, value in document.items() if value is not None}


def shortest(array: Array) -> Any:
    """Return nested lists with the fewest digits that give the same number back: 0.99, not 0.9900000095367432."""
    return array.astype(str).astype(np.float64).tolist() if array.dtype.kind == "f" else array.tolist()
