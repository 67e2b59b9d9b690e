"""One loaded attention layer: it projects key and value to k and v, and computes stages from query, k and v."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer
from attention_proto.stages import STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import Array
from attention_server.inference.engine.protocol import LEAST_ROWS, Graph, Run
from attention_server.inference.planner import choose_graph
from attention_server.inference.row_statistics import FROM_WEIGHTS
from attention_server.scheduling.cost_model import BATCH_LENGTHS

Vectors = NDArray[np.float32]
PACKED = ("q", "heads")  # stages that graphs give as [B, length, heads * width]
UNPACKED = frozenset({"output", "weights"})  # stages that graphs give in the shape that is sent
FROM_KEYS = ("k", "v", "scores")  # stages for which k and v are unpacked


@dataclass(frozen=True)
class LoadedLayer:
    """A layer of a model with its graphs.

    Attributes:
        about: the manifest's entry of the layer.
        device: where the graphs compute.
        graphs: the model's ONNX graphs by file name.
    """

    about: Layer
    device: str
    graphs: Mapping[str, Graph]

    def project(self, key: Vectors, value: Vectors, run: Run) -> tuple[Vectors, Vectors]:
        """Project key and value; return k and v, [B, S, heads * width], which a memory keeps.

        Args:
            key: [B, S, Dk].
            value: [B, S, Dv].
            run: the computation that this is a part of.
        """
        if not self._project:
            return key, value
        k, v = self._run(self._project, ("k", "v"), {"key": key, "value": value}, run)
        return k, v

    def stages(
        self, query: Vectors, k: Vectors, v: Vectors, added: Vectors | None, wanted: frozenset[str], run: Run
    ) -> dict[str, Vectors]:
        """Return the stages wanted, each [B, H, length, width], but the output [B, T, D].

        Args:
            query: [B, T, Dq].
            k: [B, S, heads * Dh].
            v: [B, S, heads * Dv].
            added: the mask, added to the scores of each sequence, [1 or H, T, S]; None for no mask.
            wanted: names of stages.
            run: the computation that this is a part of.
        """
        graph, takes_mask, names = self._recipe(wanted, added is not None)
        feeds: dict[str, Array] = {"query": query, "k": k, "v": v}
        if takes_mask:
            mask = np.zeros((1, query.shape[1], k.shape[1]), np.float32) if added is None else added
            feeds["mask"] = mask[None] if len(query) == 1 else np.repeat(mask[None], len(query), 0)
        found = dict(zip(names, self._run(graph, names, feeds, run), strict=True)) if names else {}
        if wanted <= UNPACKED:
            return found
        if "q" in wanted or "scores" in wanted:
            found.setdefault("q", query)  # where nothing is projected, q is the query
        unpacked = self._unpack(found)
        if not wanted.isdisjoint(FROM_KEYS):
            unpacked |= {"k": _split(k, self.about.key_value_heads), "v": _split(v, self.about.key_value_heads)}
        if "scores" in wanted:
            unpacked["scores"] = self._scores(unpacked["q"], unpacked["k"])
        if "heads" in wanted and "heads" not in unpacked:
            unpacked["heads"] = _split(unpacked["output"], self.about.heads)
        for name in FROM_WEIGHTS.keys() & wanted:
            unpacked[name] = FROM_WEIGHTS[name](unpacked["weights"])
        return unpacked

    def pools(self, queries: int, keys: int) -> bool:
        """Return whether the graph `pool` is used: shorter sequences run as a batch, longer ones in blocks of rows.

        The lengths alone decide, not the load of the server: the bits of an answer must not depend on that.
        """
        return BATCH_LENGTHS[-1] < max(queries, keys) < 2 * LEAST_ROWS

    def pool(self, query: Vectors, key: Vectors, value: Vectors, pool: Vectors, run: Run) -> Vectors:
        """Return weighted means of the output's rows, [B, P, D], without computing the rows.

        Args:
            query: [B, T, Dq].
            key: [B, S, Dk].
            value: [B, S, Dv].
            pool: the weight of each row in each mean, [P, T].
            run: the computation that this is a part of.
        """
        feeds = {"query": query, "key": key, "value": value, "pool": pool}
        (output,) = self.graphs[self.about.pool.name].run(("output",), feeds, run)
        return output  # type: ignore[return-value] # all graphs give float32

    @cached_property
    def _project(self) -> str:
        return self.about.project.name

    @cached_property
    def _recipe(self) -> Callable[[frozenset[str], bool], tuple[str, bool, list[str]]]:
        """The graph for wanted stages and mask or none: its file, whether it takes a mask, and the outputs to run."""

        def recipe(wanted: frozenset[str], mask: bool) -> tuple[str, bool, list[str]]:
            computed = {STAGES[stage].source or stage for stage in wanted if STAGES[stage].level == "site"}
            graph = choose_graph(about, device, weights="weights" in computed, mask=mask)
            offered = graphs[graph.file.name].outputs
            # Without M_O, the heads are the output.
            source = {"heads": "heads" if "heads" in offered else "output", "scores": "q"}
            names = sorted({source.get(stage, stage) for stage in computed}.intersection(offered))
            return graph.file.name, graph.mask, names

        about, device, graphs = (
            self.about,
            self.device,
            self.graphs,
        )  # not self: a cache that refers to its owner is a reference cycle
        return cache(recipe)

    def after(self, query: Vectors, output: Vectors, run: Run) -> Vectors:
        """Return the next layer's query, [B, T, D]."""
        feeds = {"query": query, "output": output}
        (following,) = self.graphs[self.about.after.name].run(("next",), feeds, run)
        advanced: Vectors = following  # type: ignore[assignment] # all graphs give float32
        return advanced

    def widths(self, query: int, value: int) -> tuple[int, int, int]:
        """Return Dh, Dv and D for inputs of these widths, on which they depend where a block takes any width."""
        about = self.about
        value_head = about.value_head_dim or value // about.key_value_heads
        return about.head_dim or query // about.heads, value_head, about.output_dim or about.heads * value_head

    def warm(self) -> None:
        """Run every graph once, so that no caller waits for a first allocation."""
        about = self.about
        widths = (about.query_dim or 8, about.key_dim or about.query_dim or 8, about.value_dim or about.key_dim or 8)
        query, key, value = (np.ones((1, 4, width), np.float32) for width in widths)
        run = Run()
        k, v = self.project(key, value, run)
        for wanted in (frozenset({"output"}), frozenset({"output", "weights"})):
            for added in (None, np.zeros((1, 4, 4), np.float32)):
                stages = self.stages(query, k, v, added, wanted, run)
        if about.HasField("pool"):
            self.pool(query, key, value, np.ones((1, 4), np.float32), run)
        if about.HasField("after"):
            self.after(query, stages["output"], run)

    def _unpack(self, found: Mapping[str, Vectors]) -> dict[str, Vectors]:
        """Return views: [B, length, heads * width] as [B, heads, length, width]."""
        heads = self.about.heads
        return {name: _split(x, heads) if name in PACKED else x for name, x in found.items()}

    def _scores(self, q: Vectors, k: Vectors) -> Vectors:
        """Compute q.k * scale, [B, H, T, S]; no graph gives scores, which are seldom asked for."""
        about = self.about
        shared = np.repeat(k, about.heads // about.key_value_heads, 1) if about.key_value_heads < about.heads else k
        scores: Vectors = (q @ shared.transpose(0, 1, 3, 2)) * np.float32(about.scale or q.shape[-1] ** -0.5)
        if about.softcap:
            scores = np.float32(about.softcap) * np.tanh(scores / np.float32(about.softcap))
        return scores

    def _run(self, name: str, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Vectors]:
        """Run a graph, for long sequences in blocks of rows, each with all of k and v: rows are independent."""
        graph = self.graphs[name]
        batch, rows = next(iter(feeds.values())).shape[:2]
        parts = run.parts(rows) if rows >= 2 * LEAST_ROWS and batch == 1 and self.device == "cpu" else []
        if len(parts) < 2:
            return graph.run(outputs, feeds, run)  # type: ignore[return-value] # all graphs give float32

        cut = [each for each in feeds if each not in ("k", "v")]

        def part(rows: slice) -> list[Array]:
            return graph.run(outputs, {**feeds, **{each: feeds[each][..., rows, :] for each in cut}}, run)

        return [np.concatenate(each, -2) for each in zip(*run.map(part, parts), strict=True)]


def _split(x: Vectors, heads: int) -> Vectors:
    """[B, length, heads * width] -> [B, heads, length, width], a view."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)
