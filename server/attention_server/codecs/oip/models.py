"""Descriptions of models in the Open Inference Protocol: metadata, configuration, index and statistics.

Inputs and outputs are derived from the model's manifest.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from attention_proto.attention.v1.attention_pb2 import Model
from attention_proto.folder import TRANSFORMER
from attention_proto.offers import lengths, offers
from attention_proto.stages import DEFAULT, PREDICTIONS, STAGES

from attention_server.codecs.document import fields
from attention_server.codecs.oip.rules import PREDICTION_PARTS, TOKENS, TRUNCATED
from attention_server.codecs.oip.tensor import BYTES
from attention_server.domain.index_entry import IndexEntry
from attention_server.telemetry.statistics import VersionStatistics

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
NOT_OFFERED = "shared memory, trace and log settings are not offered"
ANY = -1
PREDICTION_TYPES = {"name": BYTES, "label": BYTES, "probability": "FP32", "row": "INT64", "id": "INT64"}

Document = dict[str, Any]


class TensorMetadata(NamedTuple):
    """An input or output of a model.

    Attributes:
        name: the name in requests and responses.
        data_type: the protocol's name of the element type.
        shape: the length of each dimension; -1 where it varies.
        optional: whether a request may leave an input out.
    """

    name: str
    data_type: str
    shape: tuple[int, ...]
    optional: bool = True


def server() -> Document:
    """Return the server's metadata."""
    return {"name": "attention-service", "version": version("attention-service"), "extensions": list(EXTENSIONS)}


def metadata(model: Model) -> Document:
    """Return a model's metadata."""
    return {
        "name": model.name,
        "versions": [str(each) for each in model.versions],
        "platform": PLATFORM,
        "inputs": [_metadata(each) for each in inputs(model)],
        "outputs": [_metadata(each) for each in outputs(model)],
    }


def config(model: Model) -> Document:
    """Return a model's configuration in Triton's format."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": 0,  # dims include the batch dimension
        "input": [{**_config(each), "optional": each.optional} for each in inputs(model)],
        "output": [_config(each) for each in outputs(model)],
    }


def index(entries: Iterable[IndexEntry], *, ready: bool) -> list[Document]:
    """Return the repository's index.

    Args:
        entries: every version.
        ready: whether to leave out versions that are not ready.
    """
    return [
        {"name": each.name, "version": str(each.version), "state": each.state, "reason": each.reason}
        for each in entries
        if each.state == "READY" or not ready
    ]


def statistics(versions: Iterable[VersionStatistics]) -> Document:
    """Return request counts and durations of versions, in Triton's format."""
    return {"model_stats": [_statistics(each) for each in versions]}


def inputs(model: Model) -> list[TensorMetadata]:
    """Return a model's inputs, in the order of the documentation."""
    manifest = model.manifest
    layer, text = manifest.layers[0], manifest.text
    widths = {"query": layer.query_dim, "key": layer.key_dim or layer.query_dim, "value": layer.value_dim}
    has_text = bool(text.front.name)
    has_keys = manifest.block != TRANSFORMER  # of vectors; a transformer makes its keys itself
    tensors = [
        TensorMetadata(name, "FP32", (ANY, ANY, width or ANY), optional=name != "query" or has_text)
        for name, width in widths.items()
        if name == "query" or has_keys
    ]
    texts = {"text": has_text, "text_pair": text.takes_pairs, "memory_text": bool(text.memory_front.name)}
    tensors += [TensorMetadata(name, BYTES, (ANY,)) for name, accepted in texts.items() if accepted]
    ids = {"token_ids": has_text, "memory_token_ids": bool(text.memory_front.name)}
    tensors += [TensorMetadata(name, "INT64", (ANY, ANY)) for name, accepted in ids.items() if accepted]
    ragged = ("query_lengths", "key_lengths") if has_keys else ("query_lengths",)
    tensors += [TensorMetadata(name, "INT64", (ANY,)) for name in ragged]
    return [*tensors, TensorMetadata("allowed", "BOOL", (ANY,) * 4), TensorMetadata("bias", "FP32", (ANY,) * 4)]


def outputs(model: Model) -> list[TensorMetadata]:
    """Return every output that a request may name, with the shape it has without options."""
    manifest = model.manifest
    layer = manifest.layers[-1]
    offered = [stage for stage in reversed(tuple(STAGES.values())) if offers(stage, layer, manifest)]
    offered.sort(key=lambda stage: stage.name != DEFAULT)  # the default first
    tensors = [
        TensorMetadata(stage.name, BYTES, (ANY,))
        if stage.is_links
        else TensorMetadata(stage.name, "FP32", (ANY, *(n or ANY for n in lengths(stage, layer, manifest).values())))
        for stage in offered
    ]
    if manifest.predictors:
        tensors += [
            TensorMetadata(f"{PREDICTIONS}.{part}", PREDICTION_TYPES[part], (ANY, ANY)) for part in PREDICTION_PARTS
        ]
    fronts = (manifest.text.front.name, manifest.text.memory_front.name)
    tensors += [TensorMetadata(name, BYTES, (ANY, ANY)) for name, front in zip(TOKENS, fronts, strict=True) if front]
    return tensors + [
        TensorMetadata(name, "INT64", (ANY,)) for name, front in zip(TRUNCATED, fronts, strict=True) if front
    ]


def check_load(parameters: Mapping[str, object]) -> None:
    """Check the parameters of a load request: none is supported.

    Raises:
        InvalidRequest: there is a parameter.
    """
    fields(dict(parameters), "parameters", ())


def check_unload(parameters: Mapping[str, object]) -> None:
    """Check the parameters of an unload request; `unload_dependents` has no effect, since models are independent.

    Raises:
        InvalidRequest: there is another parameter.
    """
    fields(dict(parameters), "parameters", ("unload_dependents",))


def _statistics(version_statistics: VersionStatistics) -> Document:
    durations = {
        "success": [version_statistics.success],
        "fail": version_statistics.failures.values(),
        "queue": [version_statistics.queued],
        "compute_input": [version_statistics.checking],
        "compute_infer": [version_statistics.computing],
        "compute_output": [version_statistics.encoding],
    }
    return {
        "name": version_statistics.model,
        "version": str(version_statistics.version),
        "last_inference": version_statistics.last_inference,
        "inference_count": version_statistics.sequences.total,
        "execution_count": version_statistics.success.count,
        "inference_stats": {
            name: {"count": sum(each.count for each in histograms), "ns": sum(each.total for each in histograms)}
            for name, histograms in durations.items()
        },
    }


def _metadata(tensor: TensorMetadata) -> Document:
    return {"name": tensor.name, "datatype": tensor.data_type, "shape": list(tensor.shape)}


def _config(tensor: TensorMetadata) -> Document:
    kind = "STRING" if tensor.data_type == BYTES else tensor.data_type
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(tensor.shape)}
