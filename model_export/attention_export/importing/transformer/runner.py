"""A version's folder, run by its manifest and by names with onnxruntime: small, and independent of the server."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Layer, Side
from attention_proto.chains import Chain, source_chain, target_chain
from attention_proto.folder import tensor_name
from attention_proto.masks import additive, site_mask
from numpy.typing import NDArray

from attention_export.manifest import read_manifest
from attention_export.verify import run, session

Array = NDArray[Any]
Environment = dict[str, Array]


@dataclass
class SiteStages:
    """The results of a site, and those of the segment behind it.

    Attributes:
        inputs: q, k, v and, where the site hides or biases keys, `mask` [B or 1, H or 1, T, S].
        weights: [B, H, T, S].
        heads: [B, T, H * Dv].
        output: [B, T, Do]; None where it is not offered.
        hidden: [B, T, D]; None where it is not offered.
    """

    inputs: Environment
    weights: Array
    heads: Array
    output: Array | None = None
    hidden: Array | None = None


@dataclass
class ChainStages:
    """The stages of a chain for some sequences.

    Attributes:
        embeddings: `query` of the first segment: [B, T, D].
        sites: in the order of computation.
        segment_inputs: the inputs of each segment, by name.
        hidden: of the last segment, the model's own output: [B, T, D].
    """

    embeddings: Array
    sites: list[SiteStages] = field(default_factory=list)
    segment_inputs: list[Environment] = field(default_factory=list)
    hidden: Array | None = None


@dataclass(frozen=True)
class Tokens:
    """Sequences of one length for a chain.

    Attributes:
        tokens: INT64 [B, T].
        types: INT64 [B, T]; zeros by default.
        first_position: of the first token, beside the model's own base; of each sequence apart where it is [B,1].
    """

    tokens: Array
    types: Array | None = None
    first_position: int | Array = 0


class VersionRunner:
    """A version's graphs, opened on the CPU.

    Args:
        folder: of the version.
        kept_bytes: of files that stay open; further ones are opened for each use.
    """

    def __init__(self, folder: Path, kept_bytes: int) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        source = source_chain(self.manifest)
        self.chains = [*([] if source is None else [source]), target_chain(self.manifest)]
        self._left = kept_bytes
        self._kept: dict[str, ort.InferenceSession] = {}

    def open(self, name: str) -> ort.InferenceSession:
        """Return a graph's session."""
        if name in self._kept:
            return self._kept[name]
        opened = session(self.folder / name)
        size = (self.folder / name).stat().st_size
        if size <= self._left:
            self._left -= size
            self._kept[name] = opened
        return opened

    def run(self, tokens: Sequence[Tokens], *, masked: bool = False) -> list[ChainStages]:
        """Compute sequences of one length.

        Args:
            tokens: of each chain.
            masked: whether sites without a mask run a masked graph, with a mask of zeros.

        Returns:
            The stages of each chain.
        """
        left: Environment = {}  # k and v of cross sites, which the chain before leaves
        found = []
        for chain, each in zip(self.chains, tokens, strict=True):
            stages, environment = self._run_chain(chain, each, left, masked=masked)
            left = {name: value for name, value in environment.items() if name.startswith("cross_")}
            found.append(stages)
        return found

    def _run_chain(
        self, chain: Chain, given: Tokens, left: Environment, *, masked: bool
    ) -> tuple[ChainStages, Environment]:
        tokens = given.tokens
        positions = np.broadcast_to(given.first_position + np.arange(tokens.shape[1]), tokens.shape)
        rows = positions[0]  # sites and biases read distances alone
        environment: Environment = left | {
            "tokens": tokens,
            "position_ids": self.manifest.text.position_base + positions,
            "token_type_ids": np.zeros_like(tokens) if given.types is None else given.types,
        }
        self.step(chain.front, environment)
        stages = ChainStages(environment["query"])
        crossed = 0
        for index, layer in enumerate(chain.layers):
            stages.segment_inputs.append(self.run_segment(chain, index, environment))
            _take(chain, stages.sites, environment)
            keys = rows
            if layer.side == Side.SIDE_CROSS:
                environment |= {name: environment[f"cross_{name}_{crossed}"] for name in ("k", "v")}
                keys = np.arange(environment["k"].shape[1])
                crossed += 1
            stages.sites.append(self.run_site(layer, environment, rows, keys, masked=masked))
            environment["heads"] = stages.sites[-1].heads
        if len(chain.segments) > len(chain.layers):
            stages.segment_inputs.append(self.run_segment(chain, len(chain.layers), environment))
            _take(chain, stages.sites, environment)
        stages.hidden = environment.get("hidden")
        return stages, environment

    def step(self, name: str, environment: Environment) -> Environment:
        """Run a graph on the environment, and write its results into it; return its inputs."""
        graph = self.open(name)
        feeds = {each.name: environment[each.name] for each in graph.get_inputs()}
        environment.update({tensor_name(name): result for name, result in run(graph, feeds).items()})
        return feeds

    def run_segment(self, chain: Chain, index: int, environment: Environment) -> Environment:
        """Run a segment on the environment; return its inputs."""
        for stage in ("output", "hidden"):
            environment.pop(stage, None)
        return self.step(chain.segments[index].graph.name, environment)

    def run_site(
        self, layer: Layer, environment: Environment, rows: Array, keys: Array, *, masked: bool = False
    ) -> SiteStages:
        """Run the site's graph that tells weights, for queries and keys at positions [T] and [S]."""
        inputs = {name: environment[name] for name in ("q", "k", "v")}
        mask = self.site_mask(layer, environment, rows, keys)
        if mask is None and masked:
            mask = np.zeros((1, 1, inputs["q"].shape[1], inputs["k"].shape[1]), np.float32)
        if mask is not None:
            inputs["mask"] = mask
        graph = next(graph for graph in self.variants(layer, masked=mask is not None) if graph.weights)
        found = run(self.open(graph.file.name), inputs)
        return SiteStages(inputs, found["weights"], found["heads"])

    def variants(self, layer: Layer, *, masked: bool) -> Iterator[AttendGraph]:
        """Yield the site's graphs that take a mask, or those without; graphs of all devices are ONNX and run here."""
        return (graph for graph in layer.attend if graph.mask == masked)

    def site_mask(self, layer: Layer, environment: Environment, rows: Array, keys: Array) -> Array | None:
        """Return the site's own mask, added to its scores: its bias, and -inf at hidden keys; None if it has none."""
        if not (layer.causal or layer.window or layer.HasField("bias")):
            return None
        # A site with a mask attends to its own sequence: rows and keys begin at one position.
        added = additive(site_mask(causal=layer.causal, window=layer.window), len(rows), len(keys))[None]
        if layer.HasField("bias"):
            graph = self.open(layer.bias.name)
            feeds = {"query_positions": rows, "key_positions": keys} | environment
            added = added + run(graph, {each.name: feeds[each.name] for each in graph.get_inputs()})["bias"]
        return added

    def outputs_of(self, chain: Chain, index: int, feeds: Environment) -> Callable[[Array], Array]:
        """Return `output` of a site as a function of `heads`, for further inputs of the segment behind it."""
        graph = self.open(chain.segments[index + 1].graph.name)
        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True

        def output(heads: Array) -> Array:
            (result,) = graph.run(["output"], feeds | {"heads": heads}, options)
            return np.asarray(result)

        return output

    def predictions(self, hidden: Array) -> Environment:
        """Return the results of the head, probabilities and logits, for rows of `hidden`, [N, D]."""
        graph = self.open(self.manifest.head.name)
        (name,) = (each.name for each in graph.get_inputs())
        return run(graph, {name: hidden})


def _take(chain: Chain, sites: Sequence[SiteStages], environment: Environment) -> None:
    """Note the stages that a segment gives: `output` of the site before it, `hidden` of the layer that ends in it."""
    if not sites:
        return
    sites[-1].output = environment.get("output")
    for layer, site in zip(reversed(chain.layers[: len(sites)]), reversed(sites), strict=True):
        if "hidden" in layer.stages:
            site.hidden = environment.get("hidden", site.hidden)
            return
