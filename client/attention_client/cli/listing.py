"""The table of served models."""

from collections.abc import Iterable

from attention_proto.attention.v1 import attention_pb2 as pb
from rich.table import Table

COLUMNS = ("name", "version", "block", "heads", "widths", "text", "predictions", "device", "size", "example")


def models_table(models: Iterable[pb.Model]) -> Table:
    """Return a table with a row for each model."""
    table = Table(*COLUMNS, box=None)
    for model in models:
        table.add_row(*_table_row(model))
    return table


def _table_row(model: pb.Model) -> tuple[str, ...]:
    manifest = model.manifest
    layer = manifest.layers[0]
    layers = "" if len(manifest.layers) == 1 else f"{len(manifest.layers)} layers of "
    predictors = ", ".join(predictor.name for predictor in manifest.predictors)
    text = "yes" if manifest.HasField("text") else "no"
    version, heads = str(model.version), f"{layers}{layer.heads}"
    row = (model.name, version, manifest.block, heads, _widths(layer), text, predictors, model.device)
    return *row, _size(model), _example(manifest)


def _example(manifest: pb.Manifest) -> str:
    """Return the first text to try a model with, behind its memory text; empty for none."""
    texts = [text for each in manifest.examples[:1] for text in (each.memory_text, each.text) if text]
    return " → ".join(texts)


def _size(model: pb.Model) -> str:
    """Return the size of a version's files, the matrices in more than one of them, and the size in memory."""
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
