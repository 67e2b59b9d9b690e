"""One attention block, loaded: k and v from key and value, the stages from query, k and v."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer
from numpy.typing import NDArray

from attention_server.domain import Array
from attention_server.engine import Graph
from attention_server.plan import choose_graph

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class LoadedLayer:
    """A layer that can compute.

    Attributes:
        about: what the manifest says of it.
        device: where it computes.
        graphs: the model's ONNX graphs by file name.
    """

    about: Layer
    device: str
    graphs: Mapping[str, Graph]

    def project(self, key: Vectors, value: Vectors) -> tuple[Vectors, Vectors]:
        """Return k and v, [1, S, heads * width]: all that a memory has to keep."""
        if not self.about.HasField("project"):
            k = key[None]
            return k, k if value is key else value[None]
        k, v = self._run(self.about.project.name, ("k", "v"), {"key": key[None], "value": value[None]})
        return k, v

    def stages(
        self, query: Vectors, k: Vectors, v: Vectors, added: Vectors | None, wanted: frozenset[str]
    ) -> dict[str, Vectors]:
        """Compute the stages wanted, each [H, length, width], and the output, [T, D].

        Args:
            query: [T, Dq].
            k: [1, S, heads * Dh].
            v: [1, S, heads * Dv].
            added: what is added to the scores, [1 or H, T, S]; None for no mask.
            wanted: names of stages.
        """
        graph = choose_graph(self.about, self.device, weights="weights" in wanted, mask=added is not None)
        feeds: dict[str, Array] = {"query": query[None], "k": k, "v": v}
        if graph.mask:
            feeds["mask"] = np.zeros((1, 1, len(query), k.shape[1]), np.float32) if added is None else added[None]
        offered = self.graphs[graph.file.name].outputs
        # Without M_O, the heads are the output.
        source = {"heads": "heads" if "heads" in offered else "output", "scores": "q"}
        names = {source.get(stage, stage) for stage in wanted}.intersection(offered)
        found = dict(zip(names, self._run(graph.file.name, names, feeds), strict=True)) if names else {}
        if "q" not in offered:
            found["q"] = query[None]  # nothing is projected: q is the query
        unpacked = self._unpack(found, k, v)
        if "scores" in wanted:
            unpacked["scores"] = self._scores(unpacked["q"], unpacked["k"])
        if "heads" in wanted and "heads" not in unpacked:
            unpacked["heads"] = _split(unpacked["output"], self.about.heads)
        return unpacked

    def after(self, query: Vectors, output: Vectors) -> Vectors:
        """Return the next layer's query, [T, D]."""
        (following,) = self._run(self.about.after.name, ("next",), {"query": query[None], "output": output[None]})
        advanced: Vectors = following[0]
        return advanced

    def widths(self, query: int, value: int) -> tuple[int, int, int]:
        """Return Dh, Dv and D, which a block that takes any width has from what it is given."""
        about = self.about
        value_head = about.value_head_dim or value // about.key_value_heads
        return about.head_dim or query // about.heads, value_head, about.output_dim or about.heads * value_head

    def warm(self) -> None:
        """Run every graph once, so that no caller waits for a first allocation."""
        about = self.about
        widths = (about.query_dim or 8, about.key_dim or about.query_dim or 8, about.value_dim or about.key_dim or 8)
        query, key, value = (np.ones((4, width), np.float32) for width in widths)
        k, v = self.project(key, value)
        for wanted in (frozenset({"output"}), frozenset({"output", "weights"})):
            for added in (None, np.zeros((1, 4, 4), np.float32)):
                stages = self.stages(query, k, v, added, wanted)
        if about.HasField("after"):
            self.after(query, stages["output"])

    def _unpack(self, found: Mapping[str, Vectors], k: Vectors, v: Vectors) -> dict[str, Vectors]:
        """Turn [1, length, heads * width] into [heads, length, width]: views, until they are written to the wire."""
        heads, shared = self.about.heads, self.about.key_value_heads
        stages = {"k": _split(k[0], shared), "v": _split(v[0], shared)}
        stages |= {name: found[name][0] for name in ("output", "weights") if name in found}
        return stages | {name: _split(found[name][0], heads) for name in ("q", "heads") if name in found}

    def _scores(self, q: Vectors, k: Vectors) -> Vectors:
        """Compute q.k * scale, [H, T, S]; no graph gives it, for it is asked for seldom and costs a pass over T * S."""
        about = self.about
        shared = np.repeat(k, about.heads // about.key_value_heads, 0) if about.key_value_heads < about.heads else k
        scores: Vectors = (q @ shared.transpose(0, 2, 1)) * np.float32(about.scale or q.shape[-1] ** -0.5)
        if about.softcap:
            scores = np.float32(about.softcap) * np.tanh(scores / np.float32(about.softcap))
        return scores

    def _run(self, name: str, outputs: Iterable[str], feeds: Mapping[str, Array]) -> list[Vectors]:
        return self.graphs[name].run(list(outputs), feeds)  # type: ignore[return-value] # all graphs give float32


def _split(x: Vectors, heads: int) -> Vectors:
    """[length, heads * width] -> [heads, length, width], a view."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)
