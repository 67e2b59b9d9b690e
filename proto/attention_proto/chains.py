"""The chains of a model: one of its own sequence; in an encoder-decoder one of the source and one of the target."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Segment, Side

SiteAxes = tuple[Literal["T", "S"], Literal["T", "S"]]

OF_TARGET: SiteAxes = ("T", "T")
OF_SOURCE: SiteAxes = ("S", "S")
CROSS: SiteAxes = ("T", "S")


@dataclass(frozen=True)
class Chain:
    """One chain of a manifest.

    Attributes:
        begin: the position of its first site among the manifest's layers.
        layers: its sites, in the order of computation.
        segments: before, between and behind its sites.
        front: the file of the graph that makes vectors of tokens; empty in a model that reads no text.
        max_tokens: the longest text; 0 for any.
    """

    begin: int
    layers: Sequence[Layer]
    segments: Sequence[Segment]
    front: str
    max_tokens: int


def has_source(manifest: Manifest) -> bool:
    """Return whether a model is an encoder-decoder: of two chains."""
    return bool(manifest.layers) and manifest.layers[0].side == Side.SIDE_SOURCE


def source_chain(manifest: Manifest) -> Chain | None:
    """Return the chain of the source; None of a model of one chain."""
    if not has_source(manifest):
        return None
    text = manifest.text
    layers = [layer for layer in manifest.layers if layer.side == Side.SIDE_SOURCE]
    segments = [segment for segment in manifest.segments if segment.side == Side.SIDE_SOURCE]
    return Chain(0, layers, segments, text.memory_front.name, text.max_memory_tokens)


def target_chain(manifest: Manifest) -> Chain:
    """Return the chain of the target, or the one chain of a model."""
    text = manifest.text
    layers = [layer for layer in manifest.layers if layer.side != Side.SIDE_SOURCE]
    segments = [segment for segment in manifest.segments if segment.side != Side.SIDE_SOURCE]
    return Chain(len(manifest.layers) - len(layers), layers, segments, text.front.name, text.max_tokens)


def site_axes(layer: Layer, manifest: Manifest) -> SiteAxes:
    """Return the lengths that the queries and the keys of a site have: T of the target's, S of the source's.

    In a model of one chain, T and S are the queries and keys of its sequence.
    """
    if layer.side == Side.SIDE_SOURCE:
        return OF_SOURCE
    return CROSS if layer.side == Side.SIDE_CROSS or not has_source(manifest) else OF_TARGET


def lengths_by_axes(queries: int, keys: int, first: int) -> Mapping[SiteAxes, tuple[int, int]]:
    """Return the number of queries and keys of a site by its axes, for T and S of a request.

    A target's keys are those of a kept prefix, whose length is the position of its first query, and its own.
    """
    return {CROSS: (queries, keys), OF_TARGET: (queries, first + queries), OF_SOURCE: (keys, keys)}


def cross_names(index: int) -> tuple[str, str]:
    """Return the names of the tensors that the source's last segment gives for a cross site: its k and v."""
    return f"cross_k_{index}", f"cross_v_{index}"


def kept_names(manifest: Manifest) -> list[tuple[str, str] | None]:
    """Return the names of k and v of each layer that the source gives; None of a layer with keys of its own chain."""
    names = map(cross_names, itertools.count())
    return [next(names) if layer.side == Side.SIDE_CROSS else None for layer in manifest.layers]


def last_site(index: int, manifest: Manifest) -> int:
    """Return the position of the last site of a site's layer: the cross site behind it, if there is one.

    The segment behind that site gives the hidden state of the layer.
    """
    behind = manifest.layers[index + 1 : index + 2]
    return index + 1 if behind and behind[0].side == Side.SIDE_CROSS else index


def segment_behind(index: int, manifest: Manifest) -> Segment | None:
    """Return the segment behind a site; None where there is none."""
    is_target = has_source(manifest) and manifest.layers[index].side != Side.SIDE_SOURCE
    segments = manifest.segments[index + (2 if is_target else 1) :]
    return segments[0] if segments else None


def crosses(layer: Layer, manifest: Manifest) -> bool:
    """Return whether the keys of a site are of another sequence than its queries."""
    return layer.side == Side.SIDE_CROSS or manifest.block == "cross_attention"
