"""One loaded site: an attention that computes its stages from q (or the query), k and v, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from attention_proto import masks
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Layer
from attention_proto.chains import CROSS, OF_SOURCE, SiteAxes, lengths_by_axes
from attention_proto.masks import Mask
from attention_proto.stages import OF_KEYS, STAGES
from numpy.typing import NDArray

from attention_server.inference import row_statistics
from attention_server.inference.engine.protocol import LEAST_ROWS, Graph, Run
from attention_server.inference.flash import FlashAttention, is_flash
from attention_server.inference.masks import (
    LongMask,
    Positions,
    Vectors,
    add_masks,
    at_site,
    raise_low_rows,
    site_mask,
    unmasked,
)
from attention_server.inference.planner import choose_graph
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.row_blocks import block_rows, run_rows
from attention_server.inference.scores import raw_scores, split_heads
from attention_server.inference.site_changes import NO_CHANGE, SiteChange, changed_graph
from attention_server.scheduling.cost_model import BATCH_LENGTHS

Tensors = dict[str, NDArray[Any]]  # the arrays that graphs read and write, by name
Rows = NDArray[np.intp]
PACKED = ("q", "heads")  # stages that graphs give as [B, length, heads * width]
AS_SENT = frozenset({"output", "weights"})  # stages that graphs give in the shape that is sent
FROM_SCORES = ("scores", "lse")  # stages for which scores are computed
FROM_KEYS = ("k", "v", *FROM_SCORES)  # stages for which k and v are unpacked
OF_SITE = frozenset({"q", "heads", "output", "weights"})  # tensors that a graph of attention may give
MADE_HERE = frozenset({"mask", "query_positions", "key_positions"})  # inputs that a site makes itself
KEYS = ("k", "v")  # inputs that every row needs whole


class AttendRecipe(NamedTuple):
    """The computation of the stages of a site: the graph, its inputs without the mask, and the outputs to compute."""

    graph: Graph
    inputs: tuple[str, ...]
    takes_mask: bool
    outputs: list[str]


@dataclass(frozen=True)
class LoadedLayer:
    """A site of a model with its graphs.

    Attributes:
        about: the manifest's entry of the site.
        device: where the graphs compute.
        graphs: the model's ONNX graphs by file name.
        axes: of which sequences its queries and keys are.
        kept: the names under which the source gives its k and v; None where a segment before the site does.
        change: of the request.
        flash: computes heads from q, k and v without scores; None where the site needs these.
        softmax: gives the weights of one head, of a site with `flash`; None where the site has no such graph.
        takes_flash: whether `flash` is used for long sequences: the segment behind then gives a fused graph's output.
    """

    about: Layer
    device: str
    graphs: Mapping[str, Graph]
    axes: SiteAxes = CROSS
    kept: tuple[str, str] | None = None
    change: SiteChange = NO_CHANGE
    flash: Graph | None = None
    softmax: Graph | None = None
    takes_flash: bool = False

    def stages(
        self,
        tensors: Tensors,
        added: Vectors | None,
        wanted: frozenset[str],
        passed: frozenset[str],
        run: Run,
        rows: Rows | None = None,
    ) -> dict[str, Vectors]:
        """Return the stages wanted that this site computes, each [B, H, length, width], but the output [B, T, D].

        Args:
            tensors: q (or query), k and v; receives the tensors passed.
            added: the request's mask, added to the scores of each sequence, [1 or H, T, S]; None for no mask.
            wanted: names of stages.
            passed: names of the site's tensors that later graphs read.
            run: the computation that this is a part of.
            rows: the positions of the queries among the keys; None for those from 0.
        """
        bias = None
        if self._has_mask and (
            not wanted.isdisjoint(FROM_SCORES) or self._recipe(wanted | passed, False, False).outputs
        ):
            bias = self._bias(tensors, rows, run) if self._bias_file else None
            added = self._mask(tensors, added, bias, rows)
        return self._compute(tensors, added, bias, wanted, passed, run)

    def block_stages(
        self,
        tensors: Tensors,
        added: Vectors | None,
        positions: Rows,
        keys: slice,
        wanted: frozenset[str],
        passed: frozenset[str],
        run: Run,
        *,
        flash: bool = False,
    ) -> dict[str, Vectors]:
        """Return the stages wanted of some rows over some keys; see `stages`.

        Args:
            tensors: of these rows and keys.
            added: the request's mask and the site's own.
            positions: of the rows among the keys.
            keys: the positions of the keys.
            wanted: as in `stages`.
            passed: as in `stages`.
            run: as in `stages`.
            flash: whether the graph without scores computes the heads.
        """
        bias = None
        if self._bias_file:
            bias = self._bias(tensors, positions, run, keys.start)
            added = add_masks(added, bias) if added is not None else raise_low_rows(bias)
        return self._compute(tensors, added, bias, wanted, passed, run, flash=flash)

    def attends(self, wanted: frozenset[str]) -> bool:
        """Return whether a graph, or scores, has to be computed for tensors and stages."""
        return not wanted.isdisjoint(FROM_SCORES) or bool(self._recipe(wanted, False, False).outputs)

    def block_rows(self, queries: int, keys: int, *, seen: int = 0, weights: bool = True) -> int:
        """Return the number of rows that are computed together; see `row_blocks.block_rows`.

        Args:
            queries: T.
            keys: S.
            seen: the most keys that a row sees by the masks of the request and the site; 0 for S.
            weights: whether weights or scores are asked for.
        """
        about = self.about
        own = about.window if about.causal else 2 * about.window
        return block_rows(about.heads, queries, keys, min(each for each in (seen, own, keys) if each), weights=weights)

    def is_flash(self, queries: int, keys: int) -> bool:
        """Return whether the graph without scores is used where neither weights nor a mask are asked for."""
        return self.flash is not None and self.change == NO_CHANGE and is_flash(queries, keys)

    @property
    def own_mask(self) -> Mask:
        """The site's mask, which is added to a request's."""
        return masks.site_mask(causal=self.about.causal, window=self.about.window)

    @cached_property
    def gives(self) -> frozenset[str]:
        """The tensors that its graphs give: heads, and in a fused graph q and output, unless the site is changed."""
        given = OF_SITE.intersection(*(self.graphs[each.file.name].outputs for each in self._served)) - {"weights"}
        is_whole = self.change == NO_CHANGE and not self.takes_flash
        return given if is_whole or "heads" not in given else given - {"output"}

    @cached_property
    def takes(self) -> frozenset[str]:
        """The tensors that its graphs take of earlier ones."""
        files = [each.file.name for each in self._served] + [self._bias_file] * bool(self._bias_file)
        return frozenset(name for file in files for name in self.graphs[file].inputs) - MADE_HERE

    def read_keys(self, tensors: Tensors) -> None:
        """Let k and v be those that the source gave, at a cross site."""
        if self.kept is not None:
            tensors["k"], tensors["v"] = tensors[self.kept[0]], tensors[self.kept[1]]

    def lengths(self, prepared: PreparedInput) -> tuple[int, int]:
        """Return the number of queries and of keys of this site."""
        return lengths_by_axes(prepared.queries, prepared.keys, prepared.first)[self.axes]

    def first(self, prepared: PreparedInput) -> int:
        """Return the position of the first query among the keys, where both are of one sequence."""
        return 0 if self.kept is not None or self.axes == OF_SOURCE else prepared.first

    def mask(self, prepared: PreparedInput) -> Vectors | None:
        """Return the request's mask and the site's own together, [1 or H, T, S]; None for no mask."""
        first = self.first(prepared)
        rows = np.arange(first, first + prepared.queries) if first else None
        own = site_mask(*self.lengths(prepared), causal=self.about.causal, window=self.about.window, positions=rows)
        if self.axes != CROSS:
            return own
        added = at_site(prepared.added, self.about.name)
        assert not isinstance(added, LongMask)  # of a long sequence, whose masks are made by blocks
        return add_masks(added, own)

    def rows(self, stage: str, prepared: PreparedInput) -> tuple[int, Positions]:
        """Return the number of rows of a stage, and whether each may attend or be attended at this site; None for all.

        A site's own mask lets each position attend to itself, so that it matters beside a request's mask alone.
        """
        if self.axes != CROSS:  # requests mask sites of the axes CROSS alone
            return self.lengths(prepared)[stage in OF_KEYS], None
        added = at_site(prepared.added, self.about.name)
        is_alone = added is prepared.added and not (self.about.causal or self.about.window)
        if added is None or is_alone:
            return prepared.rows(stage)
        if isinstance(added, LongMask):
            attending, attended = added.beside(self.own_mask).unmasked()
        else:
            attending, attended = unmasked(self.mask(prepared))
        return (prepared.keys, attended) if stage in OF_KEYS else (prepared.queries, attending)

    def pools(self, queries: int, keys: int) -> bool:
        """Return whether the graph `pool` is used: shorter sequences run as a batch, longer ones in blocks of rows.

        The lengths alone decide, not the load of the server: the bits of an answer must not depend on that.
        """
        return BATCH_LENGTHS[-1] < max(queries, keys) < 2 * LEAST_ROWS

    def pool(self, tensors: Tensors, pool: Vectors, run: Run) -> Vectors:
        """Return weighted means of the output's rows, [B, P, D], without computing the rows.

        Args:
            tensors: query, key and value, each [B, length, width].
            pool: the weight of each row in each mean, [P, T].
            run: the computation that this is a part of.
        """
        feeds = {"query": tensors["query"], "key": tensors["key"], "value": tensors["value"], "pool": pool}
        (output,) = self.graphs[self.about.pool.name].run(("output",), feeds, run)
        return output  # type: ignore[return-value] # all graphs give float32

    def widths(self, query: int, value: int) -> tuple[int, int, int]:
        """Return Dh, Dv and D for inputs of these widths, on which they depend where a block takes any width."""
        about = self.about
        value_head = about.value_head_dim or value // about.key_value_heads
        return about.head_dim or query // about.heads, value_head, about.output_dim or about.heads * value_head

    @property
    def key_widths(self) -> tuple[int, int]:
        """The widths of k and v of all heads, in a model of given widths."""
        about = self.about
        return about.key_value_heads * about.head_dim, about.key_value_heads * about.value_head_dim

    def warm(self, tensors: Tensors, run: Run) -> None:
        """Run every graph once, so that no caller waits for a first allocation."""
        queries, keys = (tensors[name].shape[1] for name in (self.query, "k"))
        for weights in ({"weights"}, set[str]()):  # the cheap graph last: its tensors are read on
            for added in (np.zeros((1, queries, keys), np.float32), None):
                self.stages(tensors, added, frozenset(weights), self.gives, run)

    @cached_property
    def _served(self) -> list[AttendGraph]:
        """The variants of `attend` that are made for the device."""
        return [each for each in self.about.attend if each.file.name in self.graphs]

    @cached_property
    def query(self) -> str:
        """The name of the graphs' input with a row for each query: `query`, or `q` where it is projected before."""
        return "query" if "query" in self.takes else "q"

    @cached_property
    def _bias_file(self) -> str:
        return self.about.bias.name

    @cached_property
    def _has_mask(self) -> bool:
        return self.about.causal or self.about.window > 0 or bool(self._bias_file)

    @cached_property
    def _recipe(self) -> Callable[[frozenset[str], bool, bool], AttendRecipe]:
        """The recipe for tensors and stages wanted, a mask or none, and the graph without scores or not."""

        def recipe(wanted: frozenset[str], mask: bool, without_scores: bool) -> AttendRecipe:
            computed = {STAGES[name].source or name if name in STAGES else name for name in wanted}
            attend = choose_graph(about, device, weights="weights" in computed, mask=mask)
            graph = changed_graph(graphs[attend.file.name], about, change)
            if without_scores and flash is not None:
                graph = FlashAttention(about, graph, flash)
            # Without M_O, the heads are the output.
            source = {"heads": "heads" if "heads" in graph.outputs else "output", "scores": "q"}
            outputs = sorted({source.get(name, name) for name in computed}.intersection(graph.outputs))
            inputs = sorted((name for name in graph.inputs if name != "mask"), key=KEYS.__contains__)
            return AttendRecipe(graph, tuple(inputs), attend.mask, outputs)

        # Not self: a cache that refers to its owner is a reference cycle.
        about, device, graphs, change, flash = self.about, self.device, self.graphs, self.change, self.flash
        return cache(recipe)

    def _compute(
        self,
        tensors: Tensors,
        added: Vectors | None,
        bias: Vectors | None,
        wanted: frozenset[str],
        passed: frozenset[str],
        run: Run,
        *,
        flash: bool = False,
    ) -> dict[str, Vectors]:
        recipe = self._recipe(wanted | passed, added is not None, flash)
        found = self._attend(recipe, tensors, added, run) if recipe.outputs else {}
        for name in passed:
            tensors[name] = found[name]
        if wanted <= AS_SENT:
            return found
        return self._unpack(wanted, found, tensors, bias, added)

    def _attend(self, recipe: AttendRecipe, tensors: Tensors, added: Vectors | None, run: Run) -> dict[str, Vectors]:
        """Run a graph of attention, for long sequences in blocks of rows, each with all of k and v."""
        feeds = {name: tensors[name] for name in recipe.inputs}
        if recipe.takes_mask:
            query, k = tensors[self.query], tensors["k"]
            mask = np.zeros((1, query.shape[1], k.shape[1]), np.float32) if added is None else added
            mask = mask if mask.ndim == 4 else mask[None]
            feeds["mask"] = mask if len(mask) == len(query) else np.repeat(mask, len(query), 0)
        if self.device == "cpu":
            found = run_rows(recipe.graph, recipe.outputs, feeds, run, whole=KEYS)
        else:
            found = recipe.graph.run(recipe.outputs, feeds, run)
        return dict(zip(recipe.outputs, found, strict=True))  # type: ignore[arg-type] # all graphs give float32

    def step_bias(self, position: int, run: Run) -> Vectors | None:
        """Return the model's own bias for one query and the keys up to its position, [H, 1, S]; None for none."""
        if not self._bias_file:
            return None
        positions = {"query_positions": np.array([position]), "key_positions": np.arange(position + 1)}
        bias: Vectors
        (bias,) = self.graphs[self._bias_file].run(("bias",), positions, run)  # type: ignore[assignment] # float32
        of_query: Vectors = bias[0]
        return of_query

    @cached_property
    def takes_steps(self) -> bool:
        """Whether one query behind a prefix is computed by itself: on a CPU, with a bias of positions alone, if any."""
        positions = {"query_positions", "key_positions"}
        of_positions = not self._bias_file or positions >= set(self.graphs[self._bias_file].inputs)
        return self.device == "cpu" and self.query == "q" and of_positions and self.gives <= {"heads"}

    def _bias(self, tensors: Tensors, rows: Rows | None, run: Run, first_key: int = 0) -> Vectors:
        """Return the model's own bias, [B or 1, H, T, S]."""
        graph = self.graphs[self._bias_file]
        queries, keys = tensors[self.query].shape[1], tensors["k"].shape[1]
        positions = {
            "query_positions": np.arange(queries) if rows is None else rows,
            "key_positions": np.arange(first_key, first_key + keys),
        }
        feeds = {name: (tensors | positions)[name] for name in graph.inputs}
        (bias,) = graph.run(("bias",), feeds, run)
        return bias  # type: ignore[return-value] # all graphs give float32

    def _mask(self, tensors: Tensors, added: Vectors | None, bias: Vectors | None, rows: Rows | None) -> Vectors | None:
        """Return the request's mask, the site's own and its bias together, [.., 1 or H, T, S]."""
        about, queries, keys = self.about, tensors[self.query].shape[1], tensors["k"].shape[1]
        own = site_mask(queries, keys, causal=about.causal, window=about.window, positions=rows)
        added = add_masks(added, own)
        return add_masks(added, bias) if bias is None or added is not None else raise_low_rows(bias)

    def _unpack(
        self,
        wanted: frozenset[str],
        found: Mapping[str, Vectors],
        tensors: Tensors,
        bias: Vectors | None,
        added: Vectors | None,
    ) -> dict[str, Vectors]:
        """Return views: [B, length, heads * width] as [B, heads, length, width]; and stages made of others."""
        about = self.about
        unpacked = {name: split_heads(x, about.heads) if name in PACKED else x for name, x in found.items()}
        if "q" not in found and not wanted.isdisjoint(("q", *FROM_SCORES)):
            # Where nothing is projected, q is the query.
            unpacked["q"] = split_heads(tensors[self.query], about.heads)
        if not wanted.isdisjoint(FROM_KEYS):
            unpacked |= {name: split_heads(tensors[name], about.key_value_heads) for name in KEYS}
        if "scores" in wanted:  # no graph gives scores, which are seldom asked for
            scores = raw_scores(about, unpacked["q"], unpacked["k"])
            unpacked["scores"] = scores if bias is None else scores + bias
        if "lse" in wanted:  # the mask has the bias too
            scores = raw_scores(about, unpacked["q"], unpacked["k"])
            unpacked["lse"] = row_statistics.lse(scores, added, self.change.temperature)
        if "heads" in wanted and "heads" not in unpacked:
            unpacked["heads"] = split_heads(unpacked["output"], about.heads)
        if "entropy" in wanted:
            unpacked["entropy"] = row_statistics.entropy(unpacked["weights"])
        return unpacked


def runs_in_blocks(layers: Sequence[LoadedLayer], lengths: Sequence[tuple[int, int]]) -> bool:
    """Return whether a site with so many queries and keys is computed in blocks of rows; `lengths` are of each site."""
    return any(layer.block_rows(*each) < each[0] for layer, each in zip(layers, lengths, strict=True))
