"""Checks of a version that need no source: constants and graphs of sites, rows of segments, and affine outputs."""

from typing import Any

import numpy as np
import onnx
from attention_proto.attention.v1.attention_pb2 import Layer
from attention_proto.chains import Chain
from numpy.typing import NDArray

from attention_export import verify
from attention_export.importing.transformer.runner import ChainStages, Environment, SiteStages, VersionRunner
from attention_export.manifest import write_manifest
from attention_export.verify import run

Array = NDArray[Any]
RTOL = 1e-4  # of the largest value: the rounding of two float32 computations in different orders
BESIDE = "holds an attention that the source computes beside the attention interface of transformers"
SEED = 0
ATTENTION = {"Softmax", "Attention"}  # operators that a convolution over tokens has not


class Mismatch(verify.Mismatch):
    """A version differs from its source.

    Attributes:
        site: name of the first site that differs; of the one behind `embeddings`, or before `predictions`.
        stage: name of the stage that differs.
    """

    def __init__(self, site: str, stage: str, message: str) -> None:
        super().__init__(message)
        self.site, self.stage = site, stage


def place(layer: Layer) -> str:
    """Return the words for a site: its name and its module in the source."""
    return f"site {layer.name} ({layer.path})"


def check_structure(version: VersionRunner, chain: Chain, stages: ChainStages) -> None:
    """Check a chain of a version on one computation's values.

    A site loses `contributions` in the folder's manifest if its `output` is not affine in `heads`, row by row.

    Raises:
        Mismatch: a site's graph differs from the constants in the manifest, or rows of a segment depend on each
            other where the manifest says that they do not.
    """
    for layer, site in zip(chain.layers, stages.sites, strict=True):
        check_site(version, layer, site)
    for index, inputs in enumerate(stages.segment_inputs):
        if chain.segments[index].rows_dependent:
            check_attention(version, chain, index)
        else:
            check_rows(version, chain, index, inputs)
    drop_contributions(version, chain, stages)


def check_site(version: VersionRunner, layer: Layer, site: SiteStages) -> None:
    """Compare every graph of a site with softmax(softcap(q.k * scale) + mask) . v in float64, beside sinks.

    Raises:
        Mismatch: a graph differs.
    """
    weights = site_weights(layer, site)
    expected = {"weights": weights, "heads": site_reference(layer, site, weights)}
    size = (site.inputs["q"].shape[1], site.inputs["k"].shape[1])
    masks = {True: site.inputs.get("mask", np.zeros((1, 1, *size), np.float32))}
    for graph in layer.attend:
        if graph.mask or "mask" not in site.inputs:
            feeds = site.inputs | ({"mask": masks[True]} if graph.mask else {})
            found = run(version.open(graph.file.name), feeds)
            for name, value in found.items():
                _require_close(layer, name, f"{place(layer)}: {name} of {graph.file.name}", value, expected[name])


def site_weights(layer: Layer, site: SiteStages) -> Array:
    """Return softmax(softcap(q.k * scale) + mask) in float64, [B, H, T, S], by the constants of the manifest."""
    q = _split(site.inputs["q"], layer.heads)
    k = _repeat(_split(site.inputs["k"], layer.key_value_heads), layer)
    scores = q @ k.swapaxes(-1, -2) * (layer.scale or q.shape[-1] ** -0.5)
    if layer.softcap:
        scores = layer.softcap * np.tanh(scores / layer.softcap)
    scores = scores + site.inputs.get("mask", np.zeros(1))
    largest = scores.max(-1, keepdims=True)
    if not layer.sinks:
        powers = np.exp(scores - largest)
        return np.asarray(powers / powers.sum(-1, keepdims=True))
    sinks = np.array(layer.sinks, np.float64).reshape(1, -1, 1, 1)
    largest = np.maximum(largest, sinks)
    powers = np.exp(scores - largest)
    return np.asarray(powers / (powers.sum(-1, keepdims=True) + np.exp(sinks - largest)))


def site_reference(layer: Layer, site: SiteStages, weights: Array) -> Array:
    """Return weights . v with heads side by side, [B, T, H * Dv], in float64."""
    heads = weights @ _repeat(_split(site.inputs["v"], layer.key_value_heads), layer)
    batch, _, rows, _ = heads.shape
    return np.asarray(heads.swapaxes(1, 2).reshape(batch, rows, -1))


def check_rows(version: VersionRunner, chain: Chain, index: int, inputs: Environment) -> None:
    """Compare a segment's rows with the same rows in another order, with half of the rows, and with one row.

    Raises:
        Mismatch: the structures differ.
    """
    if not inputs:
        return
    graph = version.open(chain.segments[index].graph.name)
    rows = next(iter(inputs.values())).shape[1]
    together = run(graph, inputs)
    reason = f", since it {BESIDE}" if _holds_attention(version, chain, index) else ""
    order = np.random.default_rng(SEED).permutation(rows)
    for chosen in (order, order[: rows // 2 + 1], order[:1]):
        found = run(graph, {name: np.ascontiguousarray(value[:, chosen]) for name, value in inputs.items()})
        for name, value in found.items():
            what = (
                f"segment {index}, whose rows the manifest says depend on no further rows{reason}: {name} of some rows"
            )
            _require_close(_behind(chain, index), name, what, value, together[name][:, chosen])


def check_attention(version: VersionRunner, chain: Chain, index: int) -> None:
    """Refuse a segment that mixes rows by a softmax: an attention that is no site.

    Raises:
        Mismatch: there is one.
    """
    if _holds_attention(version, chain, index):
        layer = _behind(chain, index)
        raise Mismatch(layer.name, "weights", f"segment {index}, before {place(layer)}, {BESIDE}")


def _holds_attention(version: VersionRunner, chain: Chain, index: int) -> bool:
    graph = onnx.load(version.folder / chain.segments[index].graph.name).graph
    return any(node.op_type in ATTENTION for node in graph.node)


def drop_contributions(version: VersionRunner, chain: Chain, stages: ChainStages) -> None:
    """Take `contributions` from the stages of a site if its `output` is not affine in `heads`, row by row."""
    dropped = [
        layer
        for index, layer in enumerate(chain.layers)
        if "contributions" in layer.stages and not is_affine(version, chain, index, stages.segment_inputs[index + 1])
    ]
    for layer in dropped:
        layer.stages.remove("contributions")
    if dropped:
        write_manifest(version.folder, version.manifest)


def is_affine(version: VersionRunner, chain: Chain, index: int, inputs: Environment) -> bool:
    """Return whether f(a + b) = f(a) + f(b) - f(0) for `output` f of `heads`, and row i of it tells of row i alone."""
    rng = np.random.default_rng(SEED)
    a = inputs["heads"]
    b = rng.standard_normal(a.shape).astype(np.float32) * np.abs(a).max()
    alone = np.zeros_like(a)
    alone[:, -1] = a[:, -1]
    output = version.outputs_of(chain, index, inputs)
    zero, of_a, of_b, of_both, of_one = map(output, (np.zeros_like(a), a, b, a + b, alone))
    largest = max(np.abs(of_a).max(), np.abs(of_b).max())
    sums = np.abs(of_a + of_b - zero - of_both).max() <= RTOL * largest
    row = np.abs(of_one[:, -1] - of_a[:, -1]).max() <= RTOL * largest
    others = np.abs(of_one[:, :-1] - zero[:, :-1]).max(initial=0) <= RTOL * largest
    return bool(sums and row and others)


def _split(packed: Array, heads: int) -> Array:
    """[B, T, H * D] -> [B, H, T, D] in float64."""
    batch, rows, width = packed.shape
    return packed.reshape(batch, rows, heads, width // heads).swapaxes(1, 2).astype(np.float64)


def _repeat(x: Array, layer: Layer) -> Array:
    return np.repeat(x, layer.heads // layer.key_value_heads, 1)


def _behind(chain: Chain, index: int) -> Layer:
    """Return the site behind a segment; the last site for the last segment."""
    return chain.layers[min(index, len(chain.layers) - 1)]


def _require_close(layer: Layer, stage: str, what: str, found: Array, expected: Array) -> None:
    error = np.abs(found - expected).max()
    if not error <= RTOL * np.abs(expected).max():  # `not <=` also catches NaN
        raise Mismatch(layer.name, stage, f"{what} are off by {error:.3g}")
