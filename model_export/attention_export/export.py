"""Writes a model as a version of a repository: `NAME/VERSION/` with graphs, tokenizers and the manifest."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from attention_proto.attention.v1.attention_pb2 import File, Layer, Manifest, Text
from attention_proto.folder import FORMAT
from tokenizers import Tokenizer

from attention_export.blocks import DotProduct
from attention_export.graphs import (
    OPSET,
    Graph,
    after_graph,
    attend_graphs,
    front_graphs,
    head_graph,
    pool_graph,
    project_graph,
    to_onnx,
)
from attention_export.manifest import add_file, describe_layer, matrices, new_version, write_manifest
from attention_export.model import Model, TextFront
from attention_export.verify import Report, torch_reference, verify_layer, verify_surroundings

Progress = Callable[[str], None]


def export(model: Model, repository: Path, name: str, version: int, *, progress: Progress = lambda _: None) -> Path:
    """Export a model, verify it, and move the verified version into the repository.

    Args:
        model: what to export.
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
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / "version"
        folder.mkdir()
        _write(model, folder, progress)
        folder.rename(target)  # atomic
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
    )
    surroundings = [*front_graphs(model), *([head] if (head := head_graph(model)) else [])]
    for name, block, after in model.named_layers():
        prefix = f"{name}-" if model.earlier else ""
        layer = _write_layer(block, folder, name, prefix, progress)
        if after is not None:
            surroundings.append(after_graph(after, block, prefix))
        elif (pool := pool_graph(block, prefix)) is not None:
            layer.pool.CopyFrom(_write_graph(pool, folder, progress))
        manifest.layers.append(layer)
    if model.text is not None:
        manifest.text.CopyFrom(_write_text(model.text, folder))
    files = {graph.file: _write_graph(graph, folder, progress) for graph in surroundings}
    _set_files(manifest, files)
    progress("verifying against PyTorch in float64")
    report = Report()
    for (_, block, _), layer in zip(model.named_layers(), manifest.layers, strict=True):
        verify_layer(block, layer, folder, report)
    references = {graph.file: torch_reference(graph.module, tuple(graph.outputs)) for graph in surroundings}
    verify_surroundings(manifest, folder, references, report)
    manifest.parity.CopyFrom(report.parity())
    write_manifest(folder, manifest)


def _write_layer(block: DotProduct, folder: Path, name: str, prefix: str, progress: Progress) -> Layer:
    layer = describe_layer(block, name)
    if (project := project_graph(block, prefix)) is not None:
        layer.project.CopyFrom(_write_graph(project, folder, progress))
        layer.weights.CopyFrom(add_file(folder, f"{prefix}block.safetensors", matrices(block)))
    for graph, module in attend_graphs(block, prefix):
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
    """Set the manifest's fields for the files of front, head and layer transitions."""
    places = {
        "front.onnx": manifest.text.front,
        "memory-front.onnx": manifest.text.memory_front,
        "head.onnx": manifest.head,
    }
    places |= {f"{layer.name}-after.onnx": layer.after for layer in manifest.layers}
    for name, file in files.items():
        places[name].CopyFrom(file)
