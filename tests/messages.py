"""Requests and responses of the contract as arrays: written as protobuf, read from protobuf and JSON."""

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from attention_proto.attention.v1 import attention_pb2 as pb

DTYPES = {"BOOL": "?", "UINT16": "<u2", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4"}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
TENSORS = ("query", "key", "value")
TEXTS = ("text", "text_pair", "memory_text", "token_ids", "memory_token_ids", "truncate")
TRUNCATE = {"none": 0, "right": 1, "left": 2}
CAUSAL = {"none": 1, "top_left": 2, "bottom_right": 3}
REDUCE = {"none": 0, "mean": 1, "max": 2}
FOLD = {"none": 0, "mean": 1, "max": 2, "rollout": 3}
POOL = {"none": 0, "mean": 1, "first": 2, "last": 3}


class Raw(NamedTuple):
    """A tensor as it is written, right or wrong: the name or number of its type, its shape, its bytes."""

    data_type: str | int
    shape: tuple[int, ...]
    data: bytes


class TopK(NamedTuple):
    """The largest of each row."""

    indices: np.ndarray
    values: np.ndarray


# --- protobuf --------------------------------------------------------------------------------------------------------


def tensor(value: Any) -> pb.Tensor | None:
    """Write a tensor."""
    if value is None or isinstance(value, pb.Tensor):
        return value
    raw = value if isinstance(value, Raw) else Raw(NAMES[value.dtype], value.shape, value.tobytes())
    data_type = raw.data_type if isinstance(raw.data_type, int) else pb.DataType.Value(f"DATA_TYPE_{raw.data_type}")
    return pb.Tensor(data_type=data_type, shape=raw.shape, data=raw.data)


def mask_message(mask: Mapping[str, Any] | None) -> pb.Mask | None:
    if mask is None:
        return None
    window = pb.Mask.Window(**mask["window"]) if "window" in mask else None
    return pb.Mask(
        causal=CAUSAL[mask.get("causal", "none")],
        window=window,
        allowed=tensor(mask.get("allowed")),
        bias=tensor(mask.get("bias")),
        layers=mask.get("layers", ()),
    )


def output_message(spec: str | Mapping[str, Any]) -> pb.OutputSpec:
    content = {"name": spec} if isinstance(spec, str) else dict(spec)
    content["alias"] = content.pop("as", "")
    content["reduce"] = REDUCE[content.get("reduce", "none")]
    content["fold"] = FOLD[content.get("fold", "none")]
    content["pool"] = POOL[content.get("pool", "none")]
    content["data_type"] = pb.DataType.Value(f"DATA_TYPE_{content.get('data_type', 'UNSPECIFIED')}")
    content["spans"] = [span_message(*each) for each in content.get("spans", {}).items()]
    return pb.OutputSpec(**content)


def span_message(name: str, span: Any) -> pb.KeySpan:
    ends = span if isinstance(span, dict) else {"begin": span[0], "end": span[1]}
    return pb.KeySpan(name=name, **ends)


def request_message(
    model: str,
    inputs: list[dict[str, Any]],
    *,
    version: int = 0,
    outputs: Any = (),
    shared_mask: Any = None,
    token_offsets: bool = False,
    ablate: Any = (),
    score_temperature: float | None = None,
) -> pb.AttendRequest:
    """Write a request as it is told, right or wrong."""
    sequences = [
        pb.Sequence(
            **{name: tensor(sequence.get(name)) for name in TENSORS},
            text=sequence.get("text"),
            text_pair=sequence.get("text_pair"),
            memory_text=sequence.get("memory_text"),
            truncate=TRUNCATE[sequence.get("truncate", "none")],
            token_ids=sequence.get("token_ids", ()),
            memory_token_ids=sequence.get("memory_token_ids", ()),
            memory=sequence.get("memory", ""),
            extend=sequence.get("extend", False),
            mask=mask_message(sequence.get("mask")),
            lengths=sequence.get("lengths", ()),
        )
        for sequence in inputs
    ]
    return pb.AttendRequest(
        model=model,
        version=version,
        inputs=sequences,
        outputs=[output_message(spec) for spec in outputs],
        mask=mask_message(shared_mask),
        token_offsets=token_offsets,
        ablate=[pb.Ablation(**each) for each in ablate],
        score_temperature=score_temperature,
    )


def array_of(message: pb.Tensor) -> np.ndarray:
    """Read a tensor."""
    name = pb.DataType.Name(message.data_type).removeprefix("DATA_TYPE_")
    return np.frombuffer(message.data, DTYPES[name]).reshape(message.shape)


def candidate_of(message: pb.Candidate) -> dict[str, Any]:
    """Read a label that a head considered."""
    return {"id": message.id, "label": message.label, "probability": message.probability}


def alignment_of(message: pb.Alignment) -> dict[str, Any]:
    """Read links."""
    links = [{"source": each.source, "target": each.target} for each in message.links]
    return {"links": links, "pharaoh": message.pharaoh}


def read_ablation(message: pb.Ablation) -> dict[str, Any]:
    """Read heads that are switched off."""
    return {"layers": list(message.layers), "heads": list(message.heads)}


def read_message(response: pb.AttendResponse) -> dict[str, Any]:
    """Read a response."""
    return {
        "model": response.model,
        "version": response.version,
        **({"ablate": [read_ablation(each) for each in response.ablate]} if response.ablate else {}),
        **({"score_temperature": response.score_temperature} if response.HasField("score_temperature") else {}),
        "results": [
            {
                "outputs": {
                    output.name: array_of(output.tensor)
                    if output.HasField("tensor")
                    else alignment_of(output.alignment)
                    if output.HasField("alignment")
                    else TopK(array_of(output.top_k.indices), array_of(output.top_k.values))
                    for output in result.outputs
                },
                "tokens": list(result.tokens),
                "memory_tokens": list(result.memory_tokens),
                "token_offsets": [(span.start, span.end) for span in result.token_offsets],
                "memory_token_offsets": [(span.start, span.end) for span in result.memory_token_offsets],
                "truncated_tokens": result.truncated_tokens,
                "memory_truncated_tokens": result.memory_truncated_tokens,
                "memory": {"id": result.memory.id, "prefix_length": result.memory.prefix_length},
                "predictions": [
                    {"name": each.name, "label": each.label, "probability": each.probability, "id": each.id}
                    | ({"row": each.row} if each.HasField("row") else {})
                    | ({"top": [candidate_of(one) for one in each.top]} if each.top else {})
                    for each in result.predictions
                ],
            }
            for result in response.results
        ],
    }


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_document(document: Any) -> dict[str, Any]:
    """Read a response of JSON; absent lists are empty."""

    def spans(result: Any, name: str) -> list[tuple[int, int]]:
        return [(span["start"], span["end"]) for span in result.get(name, [])]

    return document | {
        "results": [
            {
                "outputs": {name: read_output(output) for name, output in result["outputs"].items()},
                "tokens": result.get("tokens", []),
                "memory_tokens": result.get("memory_tokens", []),
                "token_offsets": spans(result, "token_offsets"),
                "memory_token_offsets": spans(result, "memory_token_offsets"),
                "truncated_tokens": result.get("truncated_tokens", 0),
                "memory_truncated_tokens": result.get("memory_truncated_tokens", 0),
                "memory": {name: result.get("memory", {}).get(name) for name in ("id", "prefix_length")},
                "predictions": result.get("predictions", []),
            }
            for result in document["results"]
        ]
    }


def read_output(output: Any) -> np.ndarray | TopK:
    if "indices" in output:
        return TopK(read_output(output["indices"]), read_output(output["values"]))
    if "links" in output:
        return output
    dtype = DTYPES[output["data_type"]]
    if "data" in output:
        return np.frombuffer(base64.b64decode(output["data"]), dtype).reshape(output["shape"])
    array = np.array(output["values"], dtype)
    assert list(array.shape) == output["shape"]
    return array
