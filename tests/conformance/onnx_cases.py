"""ONNX's attention test cases as requests; as a program, prints the table of docs/conformance.md.

A set of attributes that are fixed at export (heads, widths, scale, softcap) is a `dot_product` model; the rest of a
case is a request. Cases outside the contract are listed by feature.
"""

import importlib
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from attention_export.blocks import Dims, DotProduct
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as node_cases

NOT_OFFERED = {
    "bf16": "bf16: onnxruntime has no CPU kernel for it; FP32 and FP16 are taken",
}
CAUSAL = {True: "bottom_right", False: "top_left"}


@dataclass(frozen=True)
class Attributes:
    """The attributes that are fixed at export."""

    heads: int
    key_value_heads: int
    head: int
    value_head: int
    scale: float
    softcap: float

    @property
    def model(self) -> str:
        """The served model's name."""
        widths = f"{self.heads}-{self.key_value_heads}-{self.head}-{self.value_head}"
        return f"dot-{widths}-scale-{self.scale:.4f}-softcap-{self.softcap:g}"

    def block(self) -> DotProduct:
        dims = Dims(
            query=self.heads * self.head,
            key=self.key_value_heads * self.head,
            value=self.key_value_heads * self.value_head,
            heads=self.heads,
            key_value_heads=self.key_value_heads,
        )
        return DotProduct(dims, scale=self.scale, softcap=self.softcap)


@dataclass
class Case:
    """One case: its model, a request for each sequence, and the expected answer of each."""

    name: str
    attributes: Attributes
    rtol: float
    atol: float
    sequences: list[dict[str, Any]] = field(default_factory=list)
    pasts: list[tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=list)  # key and value before each sequence's
    outputs: list[NDArray[Any]] = field(default_factory=list)  # [T, H * Dv]
    stages: dict[str, list[NDArray[Any]]] = field(default_factory=dict)  # stage -> [H, T, S]


def load() -> tuple[list[Case], dict[str, list[str]]]:
    """Return the cases within the contract, and the names of the remaining cases by reason."""
    offered: list[Case] = []
    others: dict[str, list[str]] = {reason: [] for reason in NOT_OFFERED.values()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX's fully masked cases have NaN in intermediate results
        # A module of cases computes them when it is imported; ONNX's own loader imports those of every operator.
        importlib.import_module("onnx.backend.test.case.node.attention")
    for test in node_cases._NodeTestCases:
        if not test.name.startswith("test_attention_") or test.name.endswith("expanded"):
            continue
        node = next(node for node in test.model.graph.node if node.op_type == "Attention")
        missing = [reason for mark, reason in NOT_OFFERED.items() if mark in test.name or mark in node.input]
        if missing:
            others[missing[0]].append(test.name)
        else:
            offered.append(_case(test, node))
    return offered, others


def _case(test: Any, node: onnx.NodeProto) -> Case:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs, outputs = test.data_sets[0]
    given = dict(zip([name for name in node.input if name], map(_array, inputs), strict=True))
    expected = dict(zip([name for name in node.output if name], map(_array, outputs), strict=True))
    heads = attributes.get("q_num_heads", given["Q"].shape[1])
    shared = attributes.get("kv_num_heads", given["K"].shape[1])
    q, k, v = (_packed(given[name]) for name in "QKV")  # [B, length, heads * width]
    head = q.shape[-1] // heads
    fixed = Attributes(
        heads, shared, head, v.shape[-1] // shared, attributes.get("scale", head**-0.5), attributes.get("softcap", 0.0)
    )
    case = Case(test.name, fixed, test.rtol, test.atol)
    lengths = given.get("nonpad_kv_seqlen", np.full(len(q), k.shape[1]))
    before = given["past_key"].shape[2] if "past_key" in given else 0
    if before:
        case.pasts = list(zip(*[_packed(given[name]) for name in ("past_key", "past_value")], strict=True))
        case.stages = {"k": list(expected["present_key"]), "v": list(expected["present_value"])}
    for index, length in enumerate(lengths):
        sequence = {"query": q[index], "key": k[index, :length], "value": v[index, :length]}
        sequence |= _position_mask(attributes, cached="nonpad_kv_seqlen" in given)
        if "attn_mask" in given:
            keys = before + k.shape[1]
            sequence |= _explicit_mask(given["attn_mask"], index, heads, q.shape[1], keys, before + int(length))
        case.sequences.append(sequence)
        case.outputs.append(_packed(expected["Y"])[index])
    if "qk_matmul_output" in expected and (stage := _stage_of(attributes)):
        case.stages[stage] = [
            each[..., : before + int(n)] for each, n in zip(expected["qk_matmul_output"], lengths, strict=True)
        ]
    return case


def _array(value: Any) -> NDArray[Any]:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _packed(x: NDArray[Any]) -> NDArray[Any]:
    """[B, H, length, width] -> [B, length, H * width]; packed arrays are unchanged."""
    return x if x.ndim == 3 else x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def _position_mask(attributes: dict[str, Any], *, cached: bool) -> dict[str, Any]:
    """Return the causal mask and window. With an external cache, ONNX aligns the last query with the last valid key."""
    said: dict[str, Any] = {}
    if attributes.get("is_causal"):
        said["causal"] = CAUSAL[cached]
    window = attributes.get("left_window_size", -1), attributes.get("right_window_size", -1)
    if window != (-1, -1):
        said["window"] = window
    return said


def _explicit_mask(
    mask: NDArray[Any], index: int, heads: int, queries: int, keys: int, length: int
) -> dict[str, NDArray[Any]]:
    """Return the explicit mask of one sequence and its valid keys, broadcast from any rank to [H, T, S]."""
    if mask.ndim == 4:
        mask = mask[index if len(mask) > 1 else 0]
    short = keys - mask.shape[-1] if mask.shape[-1] > 1 else 0
    if short > 0:  # ONNX pads a short mask: keys beyond it are masked
        mask = np.pad(
            mask, [(0, 0)] * (mask.ndim - 1) + [(0, short)], constant_values=False if mask.dtype == bool else -np.inf
        )
    whole = np.broadcast_to(mask, (heads, queries, keys))[..., :length]
    return {"allowed": whole} if mask.dtype == bool else {"bias": whole}


def _stage_of(attributes: dict[str, Any]) -> str | None:
    """Return the stage of ONNX's qk_matmul_output: its mode 0 is `scores` only without a softcap; None for no stage."""
    mode = attributes.get("qk_matmul_output_mode", 0)
    return {0: None if attributes.get("softcap") else "scores", 1: "scores", 3: "weights"}.get(mode)


def table() -> str:
    """Return the table of docs/conformance.md."""
    offered, others = load()
    lines = ["| ONNX cases | number | result |", "|---|---|---|"]
    counts = Counter("with " + " and ".join(_features(case)) if _features(case) else "plain" for case in offered)
    lines += [
        f"| {feature} | {count} | sent over gRPC and REST, within the case's tolerance |"
        for feature, count in sorted(counts.items())
    ]
    lines += [
        f"| {reason.partition(':')[0]} | {len(names)} | not offered: {reason.partition(': ')[2]} |"
        for reason, names in others.items()
    ]
    total = len(offered) + sum(map(len, others.values()))
    return "\n".join([*lines, f"| **all** | **{total}** | **{len(offered)} offered, {total - len(offered)} not** |"])


def _features(case: Case) -> list[str]:
    first = case.sequences[0]
    features = {
        "grouped-query heads": case.attributes.key_value_heads != case.attributes.heads,
        "values of another width": case.attributes.value_head != case.attributes.head,
        "a causal mask": "causal" in first,
        "a window": "window" in first,
        "a boolean mask": "allowed" in first,
        "an additive mask": "bias" in first,
        "softcap": bool(case.attributes.softcap),
        "scale": abs(case.attributes.scale - case.attributes.head**-0.5) > 1e-6,
        "fp16": first["query"].dtype == np.float16,
        "scores": "scores" in case.stages,
        "weights": "weights" in case.stages,
        "past and present keys": bool(case.pasts),
    }
    return [name for name, there in features.items() if there]


if __name__ == "__main__":
    print(table())
