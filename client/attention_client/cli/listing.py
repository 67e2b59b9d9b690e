"""The served models, as text and as a JSON document."""

import shlex
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from attention_proto.attention.v1 import attention_pb2 as pb
from google.protobuf.json_format import MessageToDict
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def models_document(models: Iterable[pb.Model]) -> dict[str, Any]:
    """Return the models as JSON values, in the form of the REST response."""
    return {"models": [MessageToDict(model, preserving_proto_field_name=True) for model in models]}


def describe_models(models: Iterable[pb.Model]) -> Iterator[Text | Padding]:
    """Yield a heading and a table of properties for each model."""
    for model in models:
        manifest = model.manifest
        kind = f"{manifest.block} {manifest.architecture}".strip()
        yield Text(f"{model.name} {model.version}  {kind}  {model.device}  {_size(model)}")
        table = Table.grid(padding=(0, 2))
        for name, value in _properties(model):
            table.add_row(name, Text(value))
        yield Padding(table, (0, 0, 0, 2), expand=False)


def _properties(model: pb.Model) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each property that a model has."""
    manifest = model.manifest
    others = [str(version) for version in model.versions if version != model.version]
    found = {
        "versions": ", ".join(others) and f"also {', '.join(others)}",
        "layers": "; ".join(_layers(manifest)),
        "tokens": _tokens(manifest),
        "learned": _learned(manifest),
        "predicts": ", ".join(predictor.name for predictor in manifest.predictors),
        "try": _example(model),
    }
    return ((name, text) for name, text in found.items() if text)


def _layers(manifest: pb.Manifest) -> Iterator[str]:
    """Yield the number, heads and widths of each run of equal layers."""
    for about, run in groupby(manifest.layers, _about):
        names = [layer.name for layer in run]
        named = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} layers"
        yield f"{named}: {about}"


def _about(layer: pb.Layer) -> str:
    shared = "" if layer.key_value_heads in {0, layer.heads} else f" over {layer.key_value_heads} of keys and values"
    heads = f"{layer.heads} head{'s' * (layer.heads != 1)}{shared}"
    wide = f", {layer.head_dim} wide" if layer.head_dim else ""
    limits = [name for name, holds in (("causal", layer.causal), (f"window {layer.window}", layer.window)) if holds]
    return ", ".join([f"{heads}{wide}", f"vectors {_widths(layer)}", *limits])


def _tokens(manifest: pb.Manifest) -> str:
    if not manifest.HasField("text"):
        return ""
    text = manifest.text
    most = f"at most {text.max_tokens}" if text.max_tokens else "any number"
    memory = f"; of the memory text at most {text.max_memory_tokens}" if text.max_memory_tokens else ""
    known = f", of {text.vocabulary_size:,}" if text.vocabulary_size else ""
    pairs = ", pairs of texts" if text.takes_pairs else ""
    return f"{most}{memory}{known}{pairs}"


def _learned(manifest: pb.Manifest) -> str:
    """Return the description, and the figures on held-out data."""
    figures = ", ".join(f"{name} {value:.3g}" for name, value in sorted(manifest.training.figures.items()))
    return f"{manifest.description} Held out: {figures}." if figures else manifest.description


def _example(model: pb.Model) -> str:
    """Return a command to try a model with; empty for none."""
    examples = model.manifest.examples
    if not examples:
        return ""
    memory = f" --memory-text {shlex.quote(examples[0].memory_text)}" if examples[0].memory_text else ""
    return f"attention-client attend {shlex.quote(examples[0].text)} --model {model.name}{memory}"


def _size(model: pb.Model) -> str:
    """Return the size of a version's files, the matrices in more than one file, and the size in memory."""
    doubled = f", {_mebibytes(model.manifest.doubled_bytes)} twice" if model.manifest.doubled_bytes else ""
    return f"{_mebibytes(model.file_bytes)} MiB{doubled}, {_mebibytes(model.memory_bytes)} in memory"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.3g}"


def _widths(layer: pb.Layer) -> str:
    """Return the widths of the vectors in and out: one where query, key and value share it."""
    inputs = [layer.query_dim, layer.key_dim or layer.query_dim, layer.value_dim or layer.key_dim or layer.query_dim]
    output = layer.output_dim or layer.heads * layer.value_head_dim
    taken = " ".join(str(width or "any") for width in (inputs if len(set(inputs)) > 1 else inputs[:1]))
    return f"{taken} → {output or 'any'}"
