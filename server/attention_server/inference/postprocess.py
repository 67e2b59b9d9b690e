"""The shaping of an output: heads and rows chosen, heads reduced, rows pooled, top k taken, FP16."""

from typing import Any

import numpy as np
from attention_proto.stages import STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import Array, OutputSpec, TopK
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.key_spans import Ranges, sums_over
from attention_server.inference.top_k import top_k

Rows = NDArray[np.intp]


def check_rows(spec: OutputSpec, length: int, left: NDArray[np.bool_] | None, field: str) -> None:
    """Check the rows chosen against the sequence; for the arguments see `read_rows`.

    Raises:
        InvalidRequest: there is no such row, or the mask leaves none to pool.
    """
    if not spec.rows and spec.pool == "none":
        return
    for row in spec.rows:
        if not -length <= row < length:
            raise InvalidRequest(f"there is no row {row}; there are {length}, from 0", field=join_path(field, "rows"))
    if len({row % length for row in spec.rows}) < len(spec.rows):
        raise InvalidRequest("names a row twice", field=join_path(field, "rows"))
    if spec.pool != "none" and left is not None and not len(read_rows(spec, length, left)):  # type: ignore[arg-type]
        raise InvalidRequest("the mask leaves no row to pool: none may attend", field=join_path(field, "pool"))


def read_rows(spec: OutputSpec, length: int, left: NDArray[np.bool_] | None) -> Rows | None:
    """Return the rows of a stage that an output is made of, in its order; None for all.

    Args:
        spec: rows and pooling; checked.
        length: the number of rows.
        left: whether a row is unmasked, [length]; None where all are. Masked rows are not pooled.
    """
    rows = np.array(spec.rows, np.intp) % length if spec.rows else None
    if spec.pool == "none" or (spec.pool == "mean" and left is None):
        return rows
    rows = np.arange(length) if rows is None else rows
    rows = rows if left is None else rows[left[rows]]
    return rows if spec.pool == "mean" else rows[:1] if spec.pool == "first" else rows[-1:]


def shape_stage(
    stage: NDArray[np.float32],
    rows: Rows | None,
    spec: OutputSpec,
    hidden: NDArray[np.bool_] | None,
    field: str,
    ranges: Ranges | None = None,
) -> Array | TopK:
    """Return a stage shaped as a spec says.

    Args:
        stage: [H, length, columns], without the axes that this stage lacks.
        rows: the rows of the output, in its order; None for all.
        spec: heads, reduction, pooling, top k and data type.
        hidden: whether a key is masked, [1 or H, the rows, S]; masked keys come last among the top k.
        field: for the error.
        ranges: of keys that are summed; None for each key by itself.

    Raises:
        InvalidRequest: FP16 cannot hold a number of this output.
    """
    gathered = gather(stage, rows, spec, ranges)
    if spec.pool != "none":
        gathered = gathered.mean(-2) if gathered.shape[-2] > 1 else gathered[..., 0, :]
    return finish(gathered, spec, None if hidden is None else shape_hidden(hidden, spec), field)


def gather(
    stage: NDArray[np.float32], rows: Rows | slice | None, spec: OutputSpec, ranges: Ranges | None = None
) -> NDArray[np.float32]:
    """Return the rows of a stage, and of these the heads that a spec chooses, or their reduction, [H, rows, columns].

    A stage without columns gets one. Ranges of keys are summed before the reduction: the maximum over heads is that of
    the sums.
    """
    stage = stage if STAGES[spec.name].column_axis is not None else stage[..., None]
    stage = stage if rows is None else stage[..., rows, :]
    stage = stage[list(spec.heads)] if spec.heads else stage
    stage = stage if ranges is None else sums_over(stage, ranges)
    if spec.reduce == "mean":  # to the same bits as `stage.mean`, which divides by way of float64
        return stage.sum(0, keepdims=True) / np.float32(len(stage))  # type: ignore[no-any-return] # float32
    return stage.max(0, keepdims=True) if spec.reduce == "max" else stage


def finish(
    gathered: NDArray[np.float32], spec: OutputSpec, hidden: NDArray[np.bool_] | None, field: str
) -> Array | TopK:
    """Return gathered numbers in the form that is sent: its top k, and its type.

    Args:
        gathered: [.., columns].
        spec: top k and data type.
        hidden: whether a key is masked, broadcastable to the numbers.
        field: for the error.

    Raises:
        InvalidRequest: FP16 cannot hold a number of this output.
    """
    if not spec.top_k:
        has_columns = STAGES[spec.name].column_axis is not None
        return as_data_type(gathered if has_columns else gathered[..., 0], spec, field)
    top = top_k(gathered, spec.top_k, hidden)
    return TopK(top.indices, as_data_type(top.values, spec, field))


def shape_hidden(hidden: NDArray[np.bool_], spec: OutputSpec) -> NDArray[np.bool_]:
    """Choose, reduce and pool the mask of hidden keys like the stage: a key is hidden where all its sources are."""
    hidden = hidden[list(spec.heads)] if spec.heads and len(hidden) > 1 else hidden  # one mask may serve all heads
    hidden = np.all(hidden, axis=0, keepdims=True) if spec.reduce != "none" else hidden
    return np.all(hidden, axis=-2) if spec.pool != "none" else hidden


def as_data_type(stage: NDArray[Any], spec: OutputSpec, field: str) -> Array:
    """Return a stage in the number format of a spec.

    Raises:
        InvalidRequest: FP16 cannot hold a number.
    """
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
