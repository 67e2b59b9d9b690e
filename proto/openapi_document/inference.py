"""Schemas of /v2, the Open Inference Protocol; its names are the protocol's."""

from attention_proto.codec import DTYPES

from openapi_document.schema import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    answer,
    array,
    described,
    enumeration,
    integer,
    ref,
    request,
)

DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
DATA = array({}, "Row-major, flat or in nested lists: numbers, booleans, or strings of a BYTES tensor.")


def _closed(properties: dict[str, Schema], required: list[str] | None = None, words: str = "") -> Schema:
    """Return an answer's schema without room for more; the protocol fixes its properties."""
    return answer(properties, required, words) | {"additionalProperties": False}


SCHEMAS: dict[str, Schema] = {
    "InferenceServer": _closed({"name": STRING, "version": STRING, "extensions": array(STRING)}),
    "Live": answer({"live": BOOLEAN}),
    "Ready": answer({"name": STRING, "ready": BOOLEAN}, ["ready"]),
    "TensorMetadata": _closed(
        {"name": STRING, "datatype": STRING, "shape": array(INTEGER)}, words="A dimension of -1 varies."
    ),
    "ModelMetadata": _closed(
        {
            "name": STRING,
            "versions": array(STRING),
            "platform": STRING,
            "inputs": array(ref("TensorMetadata")),
            "outputs": array(ref("TensorMetadata")),
        }
    ),
    "TensorConfig": _closed(
        {"name": STRING, "data_type": STRING, "dims": array(INTEGER), "optional": BOOLEAN},
        ["name", "data_type", "dims"],
    ),
    "ModelConfig": _closed(
        {
            "name": STRING,
            "platform": STRING,
            "backend": STRING,
            "max_batch_size": INTEGER,
            "input": array(ref("TensorConfig")),
            "output": array(ref("TensorConfig")),
        }
    ),
    "RepositoryIndexRequest": request({"ready": described(BOOLEAN, "List only what is ready.")}),
    "RepositoryIndex": array(ref("IndexEntry")),
    "IndexEntry": _closed({"name": STRING, "version": STRING, "state": ref("VersionState"), "reason": STRING}),
    "VersionState": enumeration(["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]),
    "LoadRequest": request({"parameters": {"type": "object"}}),
    "UnloadRequest": request({"parameters": {"type": "object"}}),
    "ParameterValue": {"anyOf": [STRING, NUMBER, BOOLEAN]},
    "Parameters": {"type": "object", "additionalProperties": ref("ParameterValue")},
    "InferDataType": enumeration([*DTYPES, "BYTES"]),
    "ContentEncoding": enumeration(["gzip", "deflate", "identity"]),
    "InferInput": request(
        {
            "name": STRING,
            "shape": array(INTEGER),
            "datatype": ref("InferDataType"),
            "parameters": ref("Parameters"),
            "data": DATA,
        },
        ["name", "shape", "datatype"],
    ),
    "InferRequestedOutput": request({"name": STRING, "parameters": ref("Parameters")}, ["name"]),
    "InferRequest": request(
        {
            "id": STRING,
            "model_name": STRING,
            "model_version": STRING,
            "parameters": ref("Parameters"),
            "inputs": array(ref("InferInput")),
            "outputs": array(ref("InferRequestedOutput")),
        },
        ["inputs"],
    ),
    "InferOutput": _closed(
        {
            "name": STRING,
            "shape": array(INTEGER),
            "datatype": STRING,
            "parameters": ref("Parameters"),
            "data": DATA,
        },
        ["name", "shape", "datatype"],
    ),
    "InferResponse": _closed(
        {"id": STRING, "model_name": STRING, "model_version": STRING, "outputs": array(ref("InferOutput"))},
        ["model_name", "model_version", "outputs"],
    ),
    "Duration": _closed({"count": integer(0), "ns": integer(0)}),
    "InferStatistics": _closed({name: ref("Duration") for name in DURATIONS}),
    "VersionStatistics": _closed(
        {
            "name": STRING,
            "version": STRING,
            "last_inference": integer(0, "Milliseconds since 1970."),
            "inference_count": integer(0, "Sequences that were answered."),
            "execution_count": integer(0, "Requests that were answered."),
            "inference_stats": ref("InferStatistics"),
        }
    ),
    "ModelStatistics": _closed({"model_stats": array(ref("VersionStatistics"))}),
    "InferenceError": _closed({"error": described(STRING, "The field at fault, where there is one, and the remedy.")}),
}
