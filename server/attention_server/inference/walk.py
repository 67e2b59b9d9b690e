"""The walk through a chain: the segments and sites that run for the stages wanted, and the tensors that each gives.

Graphs are connected by the names of tensors alone. `segment 0, site 0, segment 1, site 1, ...`: a segment gives q, k
and v of the site behind it, and the output of the site, or the hidden state of the layer, before it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from attention_proto.attention.v1.attention_pb2 import Segment as SegmentEntry
from attention_proto.folder import tensor_name
from attention_proto.stages import LISTED

from attention_server.inference.engine.protocol import Graph
from attention_server.inference.layer import KEYS, LoadedLayer

CONTRIBUTIONS = "contributions"
BEHIND = LISTED - {CONTRIBUTIONS}  # tensors of the segment behind a site that are sent unchanged
EMBEDDINGS = "embeddings"
MAX_WALKS = 128  # kept for each model

Wanted = tuple[frozenset[str], ...]  # the stages wanted of each site, up to the last one
Names = frozenset[str]  # of tensors
NO_NAMES: Names = frozenset()


class Segment(NamedTuple):
    """A segment that runs: its graph, its inputs, the outputs to compute, and the tensor that each becomes.

    `is_by_row` says whether each row follows from its own inputs, `is_shared` whether it has the same bits, too, in a
    run of several sequences.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]
    is_by_row: bool
    is_shared: bool = False


class Step(NamedTuple):
    """A site, the segment before it, and the parts of the site's stages that segments give.

    Attributes:
        segment: runs before the site; None where no tensor of it is needed.
        wanted: the stages wanted of the site and its layer.
        passed: the site's tensors that are read behind it.
        attends: whether the site has to compute anything.
        behind: the stages of this site that the next segment gives.
        combine: gives `output` of changed heads, for contributions; None where these are not wanted.
        cut: the tensors that have a row for each query and are read at the site or behind it.
    """

    segment: Segment | None
    wanted: frozenset[str]
    passed: frozenset[str]
    attends: bool
    behind: frozenset[str]
    combine: Segment | None
    cut: tuple[str, ...]


class Walk(NamedTuple):
    """The way through a chain.

    Attributes:
        steps: of the sites that run.
        end: the segment that runs behind the last one; None for none.
        takes: the tensors that the chain begins with, or that are kept for it.
    """

    steps: tuple[Step, ...]
    end: Segment | None
    takes: Names


class _Entry(NamedTuple):
    """A segment of the manifest."""

    graph: Graph
    is_by_row: bool
    is_shared: bool

    def giving(self, outputs: Sequence[str]) -> Segment | None:
        """Return the segment that gives outputs of the graph; None for none."""
        segment = make_segment(self.graph, outputs, is_by_row=self.is_by_row)
        return None if segment is None else segment._replace(is_shared=self.is_shared)


def walks(
    entries: Sequence[SegmentEntry], layers: Sequence[LoadedLayer], graphs: Mapping[str, Graph], shared: Names
) -> Callable[[Wanted, Names, Names, bool], Walk]:
    """Return the function that plans a chain's walks; the latest ones are kept.

    `shared` has the names of the graphs that run on the rows of several sequences.

    Its arguments are the stages wanted, the tensors that are kept for the chain, which no segment has to give, and
    further tensors wanted of the segment behind the last site; and whether k and v of every site are wanted.
    """
    segments = [_Entry(graphs[each.graph.name], not each.rows_dependent, each.graph.name in shared) for each in entries]

    def plan(wanted: Wanted, kept: Names, further: Names, keeps: bool) -> Walk:  # by position, for the cache
        return _plan(wanted, kept, further, layers, segments, keeps=keeps)

    return lru_cache(MAX_WALKS)(plan)


def _plan(
    wanted: Wanted,
    kept: Names,
    further: Names,
    layers: Sequence[LoadedLayer],
    segments: Sequence[_Entry],
    *,
    keeps: bool,
) -> Walk:
    """Plan from the last site to the first: a graph gives the tensors that are read behind it."""
    behind = [(BEHIND & stages) - layer.gives for stages, layer in zip(wanted, layers, strict=False)]
    last = behind[-1] | further
    end = _segment(segments, len(wanted), last) if last else None
    needed = set(end.inputs if end else ())
    steps: list[Step] = []
    for index in reversed(range(len(wanted))):
        layer, stages = layers[index], wanted[index]
        combine = _segment(segments, index + 1, {"output"}) if CONTRIBUTIONS in stages else None
        needed |= set(combine.inputs if combine else ())
        passed = layer.gives & needed
        attends = bool(passed | (stages - behind[index] - {EMBEDDINGS}))
        needed = (needed - passed) | (layer.takes if attends else set())
        cut = tuple(sorted(needed - set(KEYS)))
        if layer.kept is not None and attends:
            needed = (needed - set(KEYS)) | set(layer.kept)
        needed -= kept
        needed |= set(KEYS) if keeps and layer.kept is None else set()
        given = behind[index - 1] if index else frozenset[str]()
        segment = _segment(segments, index, needed | given) if index < len(segments) else None
        if segment is not None:
            needed = (needed - set(segment.tensors)) | set(segment.inputs)
        steps.append(Step(segment, stages, passed, attends, behind[index], combine, cut))
    return Walk(tuple(reversed(steps)), end, frozenset(needed))


def _segment(segments: Sequence[_Entry], index: int, wanted: "set[str] | frozenset[str]") -> Segment | None:
    """Return the segment that gives wanted tensors; None where it gives none."""
    entry = segments[index]
    return entry.giving([name for name in entry.graph.outputs if tensor_name(name) in wanted])


def make_segment(graph: Graph, outputs: Sequence[str], *, is_by_row: bool) -> Segment | None:
    """Return the segment that gives outputs of a graph; None for none."""
    if not outputs:
        return None
    tensors = tuple(map(tensor_name, outputs))
    return Segment(graph, tuple(graph.inputs), tuple(outputs), tensors, is_by_row)
