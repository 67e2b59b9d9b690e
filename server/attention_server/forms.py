"""The form in which a stage is sent: heads and rows chosen, heads reduced, the largest of each row, FP16."""

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from attention_server.domain import Array, OutputSpec, TopK, join_path
from attention_server.errors import InvalidRequest
from attention_server.plan import index_type

T = TypeVar("T", bound=np.generic)


def check_rows(spec: OutputSpec, length: int, field: str) -> None:
    """Check the rows chosen against the sequence.

    Raises:
        InvalidRequest: there is no such row.
    """
    for row in spec.rows:
        if not -length <= row < length:
            raise InvalidRequest(f"there is no row {row}; there are {length}, from 0", field=join_path(field, "rows"))
    if len({row % length for row in spec.rows}) < len(spec.rows):
        raise InvalidRequest("names a row twice", field=join_path(field, "rows"))


def shape_stage(
    stage: NDArray[np.float32], spec: OutputSpec, hidden: NDArray[np.bool_] | None, field: str
) -> Array | TopK:
    """Return a stage as it was asked for.

    Args:
        stage: [H, rows, columns], or [T, D] for `output`.
        spec: heads, rows, reduction, top k and data type.
        hidden: which keys are masked, [1 or H, T, S]; they come last among the top k.
        field: for the error.

    Raises:
        InvalidRequest: FP16 was asked for and cannot hold a number of this answer.
    """
    stage = _choose(stage, spec)
    if spec.reduce == "mean":
        stage = stage.mean(0, keepdims=True)
    elif spec.reduce == "max":
        stage = stage.max(0, keepdims=True)
    if not spec.top_k:
        return _as(stage, spec, field)
    if hidden is not None:
        hidden = _choose(hidden, spec if len(hidden) > 1 else replace(spec, heads=()))  # one mask may serve all heads
        hidden = np.all(hidden, axis=0, keepdims=True) if spec.reduce != "none" else hidden
    top = top_k(stage, spec.top_k, hidden)
    return TopK(top.indices, _as(top.values, spec, field))


def _choose(stage: NDArray[T], spec: OutputSpec) -> NDArray[T]:
    stage = stage[..., list(spec.rows), :] if spec.rows else stage
    return stage[list(spec.heads)] if spec.heads else stage


def _as(stage: NDArray[Any], spec: OutputSpec, field: str) -> Array:
    if spec.data_type == "FP32":
        return stage
    with np.errstate(over="ignore"):
        half = stage.astype(np.float16)
    if not np.isfinite(half).all():
        raise InvalidRequest(
            f"{spec.name} reaches {np.abs(stage).max():.6g}, which FP16 cannot hold; ask for FP32",
            field=join_path(field, "data_type"),
        )
    return half


def top_k(stage: NDArray[np.float32], k: int, hidden: NDArray[np.bool_] | None) -> TopK:
    """Return the k largest of each row: descending, of equal ones the lower index first, hidden ones last.

    Each number and its position become one integer that sorts as they should, so that a partition, which is linear,
    can choose and no tie is left to chance.

    Args:
        stage: [H, T, S], finite.
        k: how many; all when there are fewer.
        hidden: broadcastable to [H, T, S].
    """
    keys = stage.shape[-1]
    k = min(k, keys)
    rank = _ascending_bits(stage)
    if hidden is not None:
        rank = np.where(hidden, np.uint64(0), rank)
    positions = np.arange(keys, dtype=np.uint64)
    order = (rank << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - positions)
    largest = np.sort(np.partition(order, keys - k, axis=-1)[..., keys - k :], axis=-1)[..., ::-1]
    indices = (np.uint64(0xFFFFFFFF) - (largest & np.uint64(0xFFFFFFFF))).astype(np.int64)
    return TopK(indices.astype(index_type(keys)), np.take_along_axis(stage, indices, -1))


def _ascending_bits(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return integers above 0 in the order of the numbers: a float's bits, turned round where it is negative."""
    bits = (np.ascontiguousarray(x) + np.float32(0)).view(np.uint32)  # + 0: -0.0 equals 0.0
    sign = np.uint32(0x80000000)
    return np.where(bits & sign, ~bits, bits | sign).astype(np.uint64)
