"""Writes a model as a version of a repository: `NAME/VERSION/` with graphs, tokenizers and the manifest."""

from collections.abc import Callable
from pathlib import Path

from attention_proto.attention.v1.attention_pb2 import File, Layer, Manifest, Text
from attention_proto.folder import FORMAT
from tokenizers import Tokenizer

from attention_export.blocks import DotProduct
from attention_export.graphs import (
    OPSET,
    Graph,
    attend_graphs,
    combine_graph,
    front_graphs,
    head_graph,
    pool_graph,
    project_graph,
    to_onnx,
)
from attention_export.manifest import (
    add_file,
    describe_layer,
    doubled_bytes,
    matrices,
    new_version,
    version_folder,
    write_manifest,
)
from attention_export.model import Model, TextFront
from attention_export.verify import Report, torch_reference, verify_block, verify_surroundings

Progress = Callable[[str], None]
LAYER = "0"  # the name of a block's one layer


def export(model: Model, repository: Path, name: str, version: int, *, progress: Progress = lambda _: None) -> Path:
    """Export a model, verify it, and move the verified version into the repository.

    Args:
        model: the model to export.
        repository: the folder of models; made when absent.
        name: the model's name.
        version: 1 or above.
        progress: called with a line for each step.

    Returns:
        The version's folder.

    Raises:
        ManifestError: the name or version is not valid in a repository.
        FileExistsError: the version exists already.
        ExportFailure: a part of the model cannot be exported to ONNX.
        Mismatch: a graph does not match PyTorch; nothing is written.
    """
    target = new_version(repository, name, version)
    with version_folder(target) as folder:
        _write(model, folder, progress)
    progress(f"wrote {target}")
    return target


def _write(model: Model, folder: Path, progress: Progress) -> None:
    manifest = Manifest(
        format=FORMAT,
        block=model.block.name,
        description=model.description,
        predictors=model.predictors,
        training=model.training,
        license=model.license,
        source=model.source,
        opset=OPSET,
        examples=model.examples,
    )
    surroundings = [*front_graphs(model), *([head] if (head := head_graph(model)) else [])]
    layer = manifest.layers.add()
    layer.CopyFrom(_write_layer(model.block, folder, progress))
    if (pool := pool_graph(model.block)) is not None:
        layer.pool.CopyFrom(_write_graph(pool, folder, progress))
    combine = combine_graph(model.block)
    for segment in (each for each in (project_graph(model.block), combine) if each is not None):
        manifest.segments.add(graph=_write_graph(segment, folder, progress))
    if combine is not None:
        layer.stages.append("contributions")
    if model.text is not None:
        manifest.text.CopyFrom(_write_text(model.text, folder))
    _set_files(manifest, {graph.file: _write_graph(graph, folder, progress) for graph in surroundings})
    manifest.doubled_bytes = doubled_bytes(folder, manifest)
    progress("verifying against PyTorch in float64")
    report = Report()
    verify_block(model.block, manifest, folder, report)
    references = {graph.file: torch_reference(graph.module, tuple(graph.outputs)) for graph in surroundings}
    verify_surroundings(manifest, folder, references, report)
    manifest.parity.CopyFrom(report.parity())
    write_manifest(folder, manifest)


def _write_layer(block: DotProduct, folder: Path, progress: Progress) -> Layer:
    layer = describe_layer(block, LAYER)
    if hasattr(block, "M_K"):
        layer.weights.CopyFrom(add_file(folder, "block.safetensors", matrices(block)))
    for graph, module in attend_graphs(block):
        layer.attend.append(module.entry(_write_graph(graph, folder, progress)))
    return layer


def _write_graph(graph: Graph, folder: Path, progress: Progress) -> File:
    progress(f"exporting {graph.file}")
    return add_file(folder, graph.file, to_onnx(graph))


def _write_text(text: TextFront, folder: Path) -> Text:
    message = Text(
        allow_unknown=text.allow_unknown, max_tokens=text.max_tokens, max_memory_tokens=text.max_memory_tokens
    )
    message.tokenizer.CopyFrom(add_file(folder, "tokenizer.json", _content(text.tokenizer)))
    if text.memory_tokenizer is not None:
        entry = add_file(folder, "memory-tokenizer.json", _content(text.memory_tokenizer))
        message.memory_tokenizer.CopyFrom(entry)
    return message


def _content(tokenizer: Tokenizer) -> bytes:
    return (tokenizer.to_str(pretty=True) + "\n").encode()


def _set_files(manifest: Manifest, files: dict[str, File]) -> None:
    """Set the manifest's fields for the files of front and head."""
    places = {
        "front.onnx": manifest.text.front,
        "memory-front.onnx": manifest.text.memory_front,
        "head.onnx": manifest.head,
    }
    for name, file in files.items():
        places[name].CopyFrom(file)
