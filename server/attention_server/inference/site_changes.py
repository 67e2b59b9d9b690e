"""The changes of a request at sites: heads that are switched off, and the temperature of the softmax.

Both stand in for a site's graph, with its inputs and outputs, and run wherever a graph runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest
from attention_proto.chains import segment_behind
from attention_proto.folder import TRANSFORMER
from attention_proto.offers import NotOfferedError, chosen_layers
from attention_proto.stages import STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import Ablation, Array
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.engine.protocol import Graph, Run, Shape
from attention_server.inference.scores import raw_scores, sinks_of, softmax, split_heads

Vectors = NDArray[np.float32]
WITHOUT_M_O = ("dot_product", "self_attention")  # blocks whose heads are the output


class SiteChange(NamedTuple):
    """The change of a request at one site.

    Attributes:
        ablated: the heads with a result of zero.
        temperature: divides the masked scores.
    """

    ablated: tuple[int, ...] = ()
    temperature: float = 1.0

    @property
    def makes_weights(self) -> bool:
        """Whether weights are made, also where none are asked for."""
        return self.temperature != 1.0


NO_CHANGE = SiteChange()
Changes = tuple[SiteChange, ...]  # of each site; empty where nothing is changed


def plan_changes(ablate: Sequence[Ablation], temperature: float | None, manifest: Manifest) -> Changes:
    """Return the change of each site of a model.

    Raises:
        InvalidRequest: there is no such layer or head, or the temperature is not above 0.
    """
    if temperature is not None and not 0 < temperature < np.inf:
        raise InvalidRequest(f"must be above 0 and finite, not {temperature:g}", field="score_temperature")
    ablated: list[set[int]] = [set() for _ in manifest.layers]
    for i, each in enumerate(ablate):
        for layer in _layers(each, manifest, f"ablate[{i}]"):
            ablated[layer] |= _heads(each, manifest.layers[layer], f"ablate[{i}]")
    changes = tuple([SiteChange(tuple(sorted(heads)), temperature or 1.0) for heads in ablated])
    if all(change == NO_CHANGE for change in changes):
        return ()
    if has_fused_output(manifest):
        field = "ablate" if any(ablated) else "score_temperature"
        raise InvalidRequest("this version has no graph of M_O alone; export it again", field=field)
    return changes


def has_fused_output(manifest: Manifest) -> bool:
    """Return whether M_O stands in the graphs of attention alone."""
    return manifest.block not in (TRANSFORMER, *WITHOUT_M_O) and segment_behind(0, manifest) is None


def _layers(ablation: Ablation, manifest: Manifest, field: str) -> list[int]:
    if not ablation.layers and len(manifest.layers) > 1:
        raise InvalidRequest("name the layers, or * for all", field=join_path(field, "layers"))
    try:
        return chosen_layers(STAGES["heads"], ablation.layers, manifest)
    except NotOfferedError as error:
        raise InvalidRequest(str(error), field=join_path(field, "layers")) from error


def _heads(ablation: Ablation, layer: Layer, field: str) -> set[int]:
    for head in ablation.heads:
        if head >= layer.heads:
            words = f"there is no head {head}; layer {layer.name} has {layer.heads}, from 0"
            raise InvalidRequest(words, field=join_path(field, "heads"))
    return set(ablation.heads) or set(range(layer.heads))


def changed_graph(graph: Graph, about: Layer, change: SiteChange) -> Graph:
    """Return the graph of a changed site.

    Args:
        graph: of attention.
        about: the site.
        change: at the site.
    """
    if change.temperature != 1:
        graph = PlainAttention(about, graph, change.temperature)
    return AblatedGraph(graph, about.heads, change.ablated) if change.ablated else graph


@dataclass(frozen=True)
class AblatedGraph:
    """A graph of attention of which some heads are zero behind the weights. It gives no `output` that M_O made.

    Attributes:
        graph: gives `heads`, or `output` where that is the heads.
        heads: H.
        ablated: the heads that are zero.
    """

    graph: Graph
    heads: int
    ablated: tuple[int, ...]

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The inputs of the graph."""
        return self.graph.inputs

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The outputs of the graph, without the output of M_O."""
        result = result_of(self.graph)
        return {name: shape for name, shape in self.graph.outputs.items() if name != "output" or result == "output"}

    @property
    def nodes(self) -> Mapping[str, Mapping[str, int]]:
        """The nodes of the graph."""
        return self.graph.nodes

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Run the graph; see `Graph.run`."""
        return self._without_heads(outputs, self.graph.run(outputs, feeds, run))

    def run_path(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Run the graph; see `Graph.run_path`."""
        return self._without_heads(outputs, self.graph.run_path(outputs, feeds, run))

    def _without_heads(self, outputs: Sequence[str], found: list[Array]) -> list[Array]:
        result = result_of(self.graph)
        return [self._zeroed(x) if name == result else x for name, x in zip(outputs, found, strict=True)]

    def _zeroed(self, packed: Array) -> Array:
        """Return heads [B, T, H * Dv], of which some are zero."""
        kept = np.array(packed)
        split_heads(kept, self.heads)[:, list(self.ablated)] = 0
        return kept


@dataclass(frozen=True)
class PlainAttention:
    """Attention written out in NumPy, for softmax(masked scores / temperature), which no graph computes.

    The whole argument of the softmax is divided: scores behind their softcap, biases, a sink. Of a fused graph
    the projection of the query alone runs.

    Attributes:
        about: the site.
        graph: the graph that it stands for.
        temperature: above 0.
    """

    about: Layer
    graph: Graph
    temperature: float

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """The inputs of the graph."""
        return self.graph.inputs

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """The outputs of the graph without the output of M_O, and weights."""
        result = result_of(self.graph)
        own = {name: shape for name, shape in self.graph.outputs.items() if name in ("q", result)}
        return own | {"weights": (None,) * 4}

    @property
    def nodes(self) -> Mapping[str, Mapping[str, int]]:
        """None: it is no graph of the engine."""
        return {}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Compute outputs by name; see `Graph.run`."""
        tensors: dict[str, Any] = dict(feeds)
        q: Any = query_of(self.graph, feeds, run)
        found: dict[str, Array] = {"q": q}
        if set(outputs) - {"q"}:
            weights = self._weights(q, tensors["k"], tensors.get("mask"))
            values = split_heads(tensors["v"], self.about.key_value_heads)
            shared = np.repeat(values, self.about.heads // self.about.key_value_heads, 1)
            heads = (weights @ shared).transpose(0, 2, 1, 3)
            found["weights"], found[result_of(self.graph)] = (
                weights,
                np.ascontiguousarray(heads).reshape(*heads.shape[:2], -1),
            )
        return [found[name] for name in outputs]

    run_path = run

    def _weights(self, q: Vectors, k: Vectors, mask: Vectors | None) -> Vectors:
        """Return softmax(masked scores / temperature), [B, H, T, S]; zeros in a row without keys."""
        about = self.about
        scores = raw_scores(about, split_heads(q, about.heads), split_heads(k, about.key_value_heads))
        return softmax(scores if mask is None else scores + mask, sinks_of(about), self.temperature)


def query_of(graph: Graph, feeds: Mapping[str, Array], run: Run) -> Array:
    """Return q: as it is fed, or projected by a fused graph, which runs over one key, since it runs whole."""
    if "q" not in graph.outputs:
        return feeds["q"] if "q" in feeds else feeds["query"]
    one_key = {name: feeds[name][:, :1] for name in ("k", "v")}
    one_key |= {name: feeds[name][..., :1] for name in ("mask",) if name in feeds}
    (q,) = graph.run(("q",), {**feeds, **one_key}, run)
    return q


def result_of(graph: Graph) -> str:
    """Return the name of the output that has the heads."""
    return "heads" if "heads" in graph.outputs else "output"
