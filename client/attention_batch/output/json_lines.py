"""Lines of JSON: one answer, or one failed row."""

import base64
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from attention_client import Candidate, Prediction, TopK

from attention_batch.readers.rows import FailedRow, ScoredRow
from attention_batch.spec import Column


def dead_letter(failed: FailedRow) -> bytes:
    """Return the line of a failed row."""
    return orjson.dumps({field.name: getattr(failed, field.name) for field in fields(failed)}, default=_text) + b"\n"


def json_line(row: ScoredRow, columns: Sequence[Column]) -> bytes:
    """Return the line of one answer; each number has the fewest digits that restore it exactly."""
    values = {column.name: _json_value(value) for column, value in zip(columns, row.values, strict=True)}
    return orjson.dumps({"id": row.id, **values}, default=_text, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _json_value(value: Any) -> Any:
    if isinstance(value, TopK):
        return {"indices": value.indices, "values": value.values}
    if isinstance(value, tuple):
        return [_json_prediction(each) if isinstance(each, Prediction) else each for each in value]
    return value


def _json_prediction(prediction: Prediction) -> dict[str, Any]:
    document: dict[str, Any] = _with_probability(prediction)
    if prediction.top:
        return document | {"top": [_with_probability(candidate) for candidate in prediction.top]}
    del document["top"]
    return document


def _with_probability(labelled: Prediction | Candidate) -> dict[str, Any]:
    return {**labelled._asdict(), "probability": np.float32(labelled.probability)}


def _text(id_: Any) -> str:
    """Return an id of a type that JSON lacks as a string, bytes as base64."""
    if isinstance(id_, bytes):
        return base64.b64encode(id_).decode()
    return str(id_.cast(pa.string())) if isinstance(id_, pa.Scalar) else str(id_)
