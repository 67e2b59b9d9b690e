"""What the Open Inference Protocol says of models: metadata, configuration, the index.

What a model takes and gives follows from its manifest; nothing here is written down a second time.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from attention_proto.attention.v1.attention_pb2 import Model
from attention_proto.stages import PREDICTIONS, STAGES

from attention_server.codecs.document import fields
from attention_server.codecs.oip.rules import PREDICTION_PARTS, TOKENS
from attention_server.codecs.oip.tensor import BYTES
from attention_server.domain.messages import IndexEntry
from attention_server.telemetry.statistics import VersionStatistics

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
NOT_OFFERED = "shared memory, trace and log settings are not offered"
ANY = -1
PREDICTION_TYPES = {"name": BYTES, "label": BYTES, "probability": "FP32", "row": "INT64"}

Document = dict[str, Any]


class Place(NamedTuple):
    """An input or output: the type of its elements and the length of each dimension, -1 where it varies."""

    name: str
    data_type: str
    shape: tuple[int, ...]
    optional: bool = True


def server() -> Document:
    """Describe the server."""
    return {"name": "attention-service", "version": version("attention-service"), "extensions": list(EXTENSIONS)}


def metadata(model: Model) -> Document:
    """Describe a model."""
    return {
        "name": model.name,
        "versions": [str(each) for each in model.versions],
        "platform": PLATFORM,
        "inputs": [_metadata(each) for each in inputs(model)],
        "outputs": [_metadata(each) for each in outputs(model)],
    }


def config(model: Model) -> Document:
    """Describe a model in Triton's form."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": 0,  # the dimensions have the batch's among them
        "input": [{**_config(each), "optional": each.optional} for each in inputs(model)],
        "output": [_config(each) for each in outputs(model)],
    }


def index(entries: Iterable[IndexEntry], *, ready: bool) -> list[Document]:
    """Describe what is in the repository.

    Args:
        entries: every version.
        ready: whether only those that answer are asked for.
    """
    return [
        {"name": each.name, "version": str(each.version), "state": each.state, "reason": each.reason}
        for each in entries
        if each.state == "READY" or not ready
    ]


def statistics(versions: Iterable[VersionStatistics]) -> Document:
    """Describe what was asked of versions, and where the time went."""
    return {"model_stats": [_statistics(each) for each in versions]}


def inputs(model: Model) -> list[Place]:
    """Return what a model takes, in the order in which it is documented."""
    manifest = model.manifest
    layer, text = manifest.layers[0], manifest.text
    widths = {"query": layer.query_dim, "key": layer.key_dim or layer.query_dim, "value": layer.value_dim}
    reads_text = bool(text.front.name)
    own_only = len(manifest.layers) > 1  # several layers attend to their own sequence
    places = [
        Place(name, "FP32", (ANY, ANY, width or ANY), optional=name != "query" or reads_text)
        for name, width in widths.items()
        if name == "query" or not own_only
    ]
    texts = {"text": reads_text, "memory_text": bool(text.memory_front.name)}
    places += [Place(name, BYTES, (ANY,)) for name, there in texts.items() if there]
    lengths = ("query_lengths",) if own_only else ("query_lengths", "key_lengths")
    places += [Place(name, "INT64", (ANY,)) for name in lengths]
    return [*places, Place("allowed", "BOOL", (ANY,) * 4), Place("bias", "FP32", (ANY,) * 4)]


def outputs(model: Model) -> list[Place]:
    """Return what a model gives when it is asked for, without options."""
    manifest = model.manifest
    layer = manifest.layers[-1]
    lengths = {
        "H": layer.heads,
        "Hkv": layer.key_value_heads,
        "T": ANY,
        "S": ANY,
        "Dh": layer.head_dim or ANY,
        "Dv": layer.value_head_dim or ANY,
        "D": layer.output_dim or ANY,
    }
    # The last stage of the pipeline first: it is the default.
    places = [
        Place(stage.name, "FP32", (ANY, *(lengths[axis] for axis in stage.axes)))
        for stage in reversed(tuple(STAGES.values()))
    ]
    if manifest.predictors:
        places += [Place(f"{PREDICTIONS}.{part}", PREDICTION_TYPES[part], (ANY, ANY)) for part in PREDICTION_PARTS]
    there = (manifest.text.front.name, manifest.text.memory_front.name)
    return places + [Place(name, BYTES, (ANY, ANY)) for name, front in zip(TOKENS, there, strict=True) if front]


def check_load(parameters: Mapping[str, object]) -> None:
    """Check how a model is to be loaded.

    Raises:
        InvalidRequest: otherwise than its folder says.
    """
    fields(dict(parameters), "parameters", ())


def check_unload(parameters: Mapping[str, object]) -> None:
    """Check how a model is to be unloaded; `unload_dependents` changes nothing, for no model depends on another.

    Raises:
        InvalidRequest: there is another parameter.
    """
    fields(dict(parameters), "parameters", ("unload_dependents",))


def _statistics(one: VersionStatistics) -> Document:
    durations = {
        "success": [one.success],
        "fail": one.failures.values(),
        "queue": [one.queued],
        "compute_input": [one.checking],
        "compute_infer": [one.computing],
        "compute_output": [one.encoding],
    }
    return {
        "name": one.model,
        "version": str(one.version),
        "last_inference": one.last_inference,
        "inference_count": one.sequences.total,
        "execution_count": one.success.count,
        "inference_stats": {
            name: {"count": sum(each.count for each in all_), "ns": sum(each.total for each in all_)}
            for name, all_ in durations.items()
        },
    }


def _metadata(place: Place) -> Document:
    return {"name": place.name, "datatype": place.data_type, "shape": list(place.shape)}


def _config(place: Place) -> Document:
    kind = "STRING" if place.data_type == BYTES else place.data_type
    return {"name": place.name, "data_type": f"TYPE_{kind}", "dims": list(place.shape)}
