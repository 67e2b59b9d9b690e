"""The folder of an imported version: its graphs, tokenizer and manifest."""

import hashlib
import re
from collections import Counter
from pathlib import Path

from attention_proto.attention.v1.attention_pb2 import (
    AttendGraph,
    File,
    Layer,
    Manifest,
    Predictor,
    Segment,
    Side,
    Text,
)
from attention_proto.folder import FORMAT, TRANSFORMER, named_files

from attention_export.graphs import OPSET
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.heads import Head
from attention_export.importing.transformer.pairs import takes_pairs
from attention_export.importing.transformer.parts import ChainParts, SiteSpec, TransformerParts
from attention_export.importing.transformer.pooling import Pooling
from attention_export.importing.transformer.sites import SiteShape
from attention_export.importing.transformer.tokenizer import ImportedTokenizer
from attention_export.manifest import add_file, doubled_bytes

MOST_BYTES = 2**31 - 1  # of a protobuf message; onnxruntime reads no larger one
HASH_DIGITS = 16  # in the name of a shared file


class VersionFolder:
    """Graphs in a folder: equal ones are one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, File] = {}  # by SHA-256

    def add(self, stem: str, graph: bytes) -> File:
        """Write a graph, unless it is there already; return its entry in the manifest.

        Args:
            stem: the file's name without `.onnx`; where it is another graph's already, the content's hash is appended.
            graph: ONNX.

        Raises:
            ImportFailure: the graph is larger than a protobuf message can be.
        """
        if len(graph) > MOST_BYTES:
            raise ImportFailure(
                f"{stem} has {len(graph) / 2**30:.1f} GiB; a graph with its matrices may have 2 GiB, the most that "
                "onnxruntime reads of one file"
            )
        digest = hashlib.sha256(graph).hexdigest()
        if digest not in self._files:
            taken = any(file.name == f"{stem}.onnx" for file in self._files.values())
            name = _hashed(f"{stem}.onnx", digest) if taken else f"{stem}.onnx"
            self._files[digest] = add_file(self._folder, name, graph)
        return self._files[digest]

    def rename_shared(self, manifest: Manifest) -> None:
        """Name each file that a manifest names several times by its content."""
        entries = list(named_files(manifest))
        times = Counter(file.name for file in entries)
        for name in (name for name, count in times.items() if count > 1):
            same = [file for file in entries if file.name == name]
            named = _hashed(name, same[0].sha256)
            (self._folder / name).rename(self._folder / named)
            for file in same:
                file.name = named


def write_version(
    parts: TransformerParts,
    tokenizer: ImportedTokenizer,
    folder: Path,
    *,
    source_tokenizer: ImportedTokenizer | None = None,
    head: Head | None = None,
    pooling: Pooling | None = None,
    token_types: int = 0,
    license_: str = "",
    source: str = "",
) -> Manifest:
    """Write all files of a version but the manifest.

    Args:
        parts: the checkpoint's.
        tokenizer: of its texts.
        folder: an empty folder.
        source_tokenizer: of the texts that an encoder reads beside a decoder's; by default the same.
        head: of the task, with its predictions.
        pooling: that makes an embedding of `hidden`.
        token_types: the number of token types that are embedded; 0 for a model without types.
        license_: of the weights, an SPDX expression.
        source: the origin of the weights.

    Returns:
        The manifest, without the comparison with the source.

    Raises:
        ImportFailure: a graph is too large, or a site is none that ONNX's Attention computes.
    """
    files = VersionFolder(folder)
    manifest = Manifest(
        format=FORMAT,
        block=TRANSFORMER,
        description=f"Every attention of an imported {parts.architecture}, {parts.site_count} in order.",
        architecture=parts.architecture,
        hidden_dim=parts.target.hidden_dim,
        front_rows_dependent=any(chain.front_rows_dependent for chain in parts.chains),
        license=license_,
        source=source,
        opset=OPSET,
    )
    manifest.text.CopyFrom(_write_text(parts, tokenizer, pooling or Pooling(), folder))
    if parts.source is not None:
        _write_source_text(manifest.text, parts, source_tokenizer or tokenizer, folder)
    else:
        manifest.text.takes_pairs = takes_pairs(tokenizer, token_types)
    for chain in parts.chains:
        _write_chain(manifest, chain, files)
    if head is not None:
        manifest.head.CopyFrom(files.add("head", head.graph))
        manifest.predictors.extend(head.predictors)
        manifest.logits_dim = head.logits_dim
    if any(each.vocabulary and each.rows == Predictor.ROWS_LAST for each in manifest.predictors):
        manifest.text.end_tokens.extend(parts.end_tokens)
    files.rename_shared(manifest)
    manifest.doubled_bytes = doubled_bytes(folder, manifest)
    return manifest


def _write_chain(manifest: Manifest, chain: ChainParts, files: VersionFolder) -> None:
    """Write the graphs of a chain, and add its segments and sites to the manifest."""
    is_source = chain.side == Side.SIDE_SOURCE
    stem = "source-" if is_source else ""
    front = manifest.text.memory_front if is_source else manifest.text.front
    front.CopyFrom(files.add(f"{stem}front", chain.front()))
    for index, (graph, dependent) in enumerate(zip(chain.segments, chain.rows_dependent, strict=True)):
        file = files.add(f"{stem}segment-{index}", graph())
        manifest.segments.append(Segment(graph=file, rows_dependent=dependent, side=chain.side))
    graphs: dict[SiteShape, list[AttendGraph]] = {}
    for index, site in enumerate(chain.sites):
        shape = SiteShape.of(site)
        if shape not in graphs:
            graphs[shape] = [each.entry(files.add(_stem(each.file), each.content)) for each in shape.graphs()]
        layer = _describe(site, chain.hidden_dim if index else chain.query_dim)
        layer.side = Side.SIDE_CROSS if site.is_cross else chain.side
        layer.attend.extend(graphs[shape])
        if site.bias is not None:
            layer.bias.CopyFrom(files.add(f"{stem}bias-{index}", site.bias))
        manifest.layers.append(layer)


def _write_source_text(text: Text, parts: TransformerParts, tokenizer: ImportedTokenizer, folder: Path) -> None:
    """Write tokenizer, limits and start token of an encoder-decoder."""
    file = add_file(folder, "source-tokenizer.json", tokenizer.content())
    if file.sha256 == text.tokenizer.sha256:
        (folder / file.name).unlink()
    else:
        text.memory_tokenizer.CopyFrom(file)
    assert parts.source is not None
    assert parts.start_token is not None
    text.memory_vocabulary_size = parts.source.vocabulary_size
    text.max_memory_tokens = tokenizer.limit(parts.max_tokens)
    text.start_token = parts.start_token


def _write_text(parts: TransformerParts, tokenizer: ImportedTokenizer, pooling: Pooling, folder: Path) -> Text:
    return Text(
        vocabulary_size=parts.target.vocabulary_size,
        tokenizer=add_file(folder, "tokenizer.json", tokenizer.content()),
        allow_unknown=True,
        max_tokens=tokenizer.limit(parts.max_tokens),
        position_base=parts.position_base,
        pool=pooling.pool,
        normalize=pooling.normalize,
    )


def _describe(site: SiteSpec, width: int) -> Layer:
    """Return a site's sizes and constants.

    Args:
        site: one of the model's.
        width: of the vectors that go into its layer.
    """
    return Layer(
        name=site.name,
        path=site.path,
        heads=site.heads,
        key_value_heads=site.key_value_heads,
        query_dim=width,
        key_dim=width,
        value_dim=width,
        head_dim=site.head_dim,
        value_head_dim=site.value_head_dim,
        output_dim=site.output_dim,
        scale=site.scale,
        softcap=site.softcap,
        causal=site.causal,
        window=site.window,
        stages=site.stages,
        sinks=site.sinks,
    )


def _stem(name: str) -> str:
    return name.removesuffix(".onnx")


def _hashed(name: str, digest: str) -> str:
    """Return a name of the content: `segment-3.onnx` -> `segment-0123456789abcdef.onnx`."""
    return f"{re.sub(r'(-[0-9]+)?[.]onnx$', '', name)}-{digest[:HASH_DIGITS]}.onnx"
