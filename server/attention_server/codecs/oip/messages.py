"""Requests and responses of the Open Inference Protocol, independent of the wire format."""

from collections.abc import Mapping
from dataclasses import dataclass

from attention_server.domain.messages import Array

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request names, and its options."""

    name: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request.

    Attributes:
        model: the model's name.
        version: its version; 0 is the default version.
        id: an identifier that the response repeats.
        inputs: dense batches by name; text is an array of `str` objects.
        outputs: the requested outputs; empty for the model's default outputs.
        parameters: parameters of the whole request.
    """

    model: str
    version: int
    id: str
    inputs: Mapping[str, Array]
    outputs: tuple[RequestedOutput, ...]
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A dense batch of the response; `requested` is None for a default output."""

    name: str
    array: Array
    requested: RequestedOutput | None


@dataclass(frozen=True, slots=True)
class InferResponse:
    """An inference response. Its parameters are those of the request that are told back."""

    model: str
    version: int
    id: str
    outputs: tuple[OutputTensor, ...]
    parameters: Parameters
