"""Results and translations as JSON values."""

from typing import Any

import numpy as np
from attention_proto import codec

from attention_client.api.generate import GeneratedToken
from attention_client.api.translate import Translation
from attention_client.result import Alignment, Array, AttendResult, Candidate, OutputValue, Prediction, TopK


def as_document(results: list[AttendResult]) -> dict[str, Any]:
    """Return the results of one call as JSON values, in the form of the REST response."""
    return {
        "model": results[0].model,
        "version": results[0].version,
        "results": [_result_document(result) for result in results],
    }


def translation_document(translation: Translation, head: int | None = None) -> dict[str, Any]:
    """Return a translation as JSON values, with the alignment by one head.

    Raises:
        InvalidRequest: the model has no such head.
    """
    return {
        "model": translation.model,
        "version": translation.version,
        "text": translation.text,
        "translation": str(translation),
        "tokens": list(translation.words),
        "memory_tokens": list(translation.memory_tokens),
        "alignment": shortest(translation.alignment(head)),
    }


def token_document(step: GeneratedToken) -> dict[str, Any]:
    """Return a generated token as JSON values, with the keys that it looked at most where `weights` has a top k.

    `attention` has pairs of a key and its weight, the largest first, of the first head.
    """
    document: dict[str, Any] = {
        "id": step.id,
        "token": step.token,
        "probability": shortest(np.asarray(step.probability, np.float32)),
        "text": step.text,
        "ends": step.ends,
        "top": [_with_probability(candidate) for candidate in step.top],
    }
    weights = step.result.outputs.get("weights")
    if isinstance(weights, TopK):
        _, keys = step.result.axes("weights")
        row = zip(weights.indices[0, -1], weights.values[0, -1], strict=True)
        document["attention"] = [[keys[index], shortest(value)] for index, value in row]
    return {name: value for name, value in document.items() if value not in ("", [])}


def prediction_document(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values."""
    document: dict[str, Any] = _with_probability(prediction)
    document["top"] = [_with_probability(candidate) for candidate in prediction.top]
    return {name: value for name, value in document.items() if value not in (None, [])}


def _with_probability(labelled: Prediction | Candidate) -> dict[str, Any]:
    return {**labelled._asdict(), "probability": shortest(np.asarray(labelled.probability, np.float32))}


def shortest(array: Array) -> Any:
    """Return nested lists with the fewest digits that give the same number back: 0.99, not 0.9900000095367432."""
    return array.astype(str).astype(np.float64).tolist() if array.dtype.kind == "f" else array.tolist()


def _result_document(result: AttendResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "tokens": list(result.tokens),
        "memory_tokens": list(result.memory_tokens),
        "outputs": {name: _output_document(value) for name, value in result.outputs.items()},
        "predictions": [prediction_document(prediction) for prediction in result.predictions],
    }
    return {name: value for name, value in document.items() if value}


def _output_document(value: OutputValue) -> dict[str, Any]:
    if isinstance(value, Alignment):
        return {"links": [link._asdict() for link in value.links], "pharaoh": value.pharaoh}
    if isinstance(value, TopK):
        return {"indices": _output_document(value.indices), "values": _output_document(value.values)}
    return {"data_type": codec.NAMES[value.dtype], "shape": list(value.shape), "values": shortest(value)}
