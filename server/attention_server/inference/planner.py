"""The planner: from the outputs of a request to the stages of each layer."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import AttendGraph, Layer, Manifest
from attention_proto.chains import last_site, segment_behind
from attention_proto.folder import TRANSFORMER
from attention_proto.offers import NotOfferedError, chosen_layers, chosen_pairs, folded_layers, lengths, offers
from attention_proto.stages import (
    DEFAULT,
    LINK_OPTIONS,
    LISTED,
    OPTIONS,
    PAIRWISE_WORDS,
    PREDICTIONS,
    PROJECTED,
    STAGES,
    Axis,
    Stage,
)

from attention_server.domain.messages import LINK_BYTES, OutputSpec
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.labels import Labels
from attention_server.inference.prediction_plan import PredictionPlan, plan_predictions, rows_read
from attention_server.inference.site_changes import Changes

ALIAS = 256  # characters
MAX_SPANS = 1024  # of one output
WITHOUT_ATTENTION = PROJECTED | {"embeddings"}  # stages that come before the scores

SUMS = frozenset({"output", "hidden"})  # an overflow in any stage but those of CHECKED shows there
CHECKED = PROJECTED | SUMS | {"scores", "lse", "contributions", "embeddings"}


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """One output.

    Attributes:
        name: in the answer.
        spec: as requested.
        layer: the layer that it is of; the last one of several.
        field: in the request.
        pairs: layer and head of each head of the output; empty where all are of one layer.
        folded: the layers that are made one, in the order of computation; empty without `fold`.
    """

    name: str
    spec: OutputSpec
    layer: int
    field: str
    pairs: tuple[tuple[int, int], ...] = ()
    folded: tuple[int, ...] = ()

    @property
    def layers(self) -> set[int]:
        """Every layer that the output reads."""
        return {layer for layer, _ in self.pairs} or set(self.folded) or {self.layer}


@dataclass(frozen=True, slots=True)
class Plan:
    """The computation of a request's outputs.

    Attributes:
        outputs: the outputs to send, in order.
        stages: the stages wanted of each layer that is computed, those of its site and its own; stages of the model
            are those of its first layer. A block that this project defines gives the output too, in which an overflow
            shows, unless the projections suffice.
        predictions: the predictions; None for none.
        pools: whether the last layer that runs has a graph for pooled outputs, and gives no further ones.
        shapes: whether outputs are shaped: rows, heads or types are chosen, heads reduced, or predictions made. If not,
            stages are sent as computed.
        cuts_rows: whether chosen rows of the last layer are computed by themselves: no segment behind it depends on
            further rows.
        changes: of the request at each site; empty for none.
    """

    outputs: tuple[OutputPlan, ...]
    stages: tuple[frozenset[str], ...]
    predictions: PredictionPlan | None
    pools: bool
    shapes: bool
    cuts_rows: bool
    changes: Changes = ()


def make_plan(specs: Sequence[OutputSpec], manifest: Manifest, changes: Changes = ()) -> Plan:
    """Plan the outputs of a request.

    Args:
        specs: the outputs.
        manifest: of the model.
        changes: of the request at each site; empty for none.

    Raises:
        InvalidRequest: a name, head, layer or option is not offered, or two outputs share a name.
    """
    outputs: list[OutputPlan] = []
    predictions = PredictionPlan() if not specs and manifest.predictors else None
    for index, spec in enumerate(specs or [OutputSpec(DEFAULT)]):
        field = spec.path or f"outputs[{index}]"
        if spec.name == PREDICTIONS:
            predictions = plan_predictions(spec, manifest, field, predictions)
        else:
            outputs += _outputs(spec, manifest, field)
    _check_names(outputs)
    stages = _stages(outputs, manifest, predictions=predictions is not None)
    pools = predictions is None and not changes and _pools(outputs, len(stages) - 1, manifest)
    whole = all(_is_sent_as_computed(output) for output in outputs)
    cuts_rows = not _runs_dependent(stages, manifest)
    return Plan(tuple(outputs), stages, predictions, pools, predictions is not None or not whole, cuts_rows, changes)


def choose_graph(layer: Layer, device: str, *, weights: bool, mask: bool) -> AttendGraph:
    """Return the cheapest graph that gives the weights asked for, takes the mask given and runs on the device.

    Raises:
        LookupError: there is none; loading has ruled that out.
    """
    for graph in layer.attend:
        if graph.weights >= weights and graph.mask >= mask and (not graph.devices or device in graph.devices):
            return graph
    raise LookupError(f"no graph of layer {layer.name} gives weights={weights} with mask={mask} on {device}")


def checked_stages(wanted: frozenset[str]) -> frozenset[str]:
    """Return those of a layer's stages wanted in which an overflow is looked for."""
    return wanted & CHECKED if wanted & SUMS else wanted


def unread_stages(plan: Plan) -> frozenset[str]:
    """Return the stages of the first layer that no output and no prediction reads: in them an overflow would show."""
    read = {STAGES[output.spec.name].computed for output in plan.outputs}
    is_read = (
        "output" in read
        or plan.predictions is not None
        or any(STAGES[output.spec.name].is_of_head for output in plan.outputs)
    )
    return plan.stages[0] & (frozenset() if is_read else {"output"})


def answer_bytes(output: OutputPlan, manifest: Manifest, widths: tuple[int, int, int], queries: int, keys: int) -> int:
    """Return the size of one output of one sequence, in bytes.

    Args:
        output: its plan.
        manifest: of the model.
        widths: Dh, Dv and D of this sequence.
        queries: T of the output's layer.
        keys: S of the output's layer.
    """
    spec, stage = output.spec, STAGES[output.spec.name]
    if stage.is_links:
        return LINK_BYTES * (len(spec.rows) or queries)
    known = lengths(stage, manifest.layers[output.layer], manifest)
    of_sequence: Mapping[Axis | None, int] = dict(zip(("Dh", "Dv", "D", "S", None), (*widths, keys, 1), strict=True))
    heads = len(output.pairs) or len(spec.heads) or known.get(stage.axes[0], 1)
    heads = 1 if spec.reduce != "none" or not stage.head_axis else heads
    rows = 1 if spec.pool != "none" or stage.sums_rows else len(spec.rows) or (keys if stage.is_of_keys else queries)
    columns = (stage.column_axis and known[stage.column_axis]) or of_sequence[stage.column_axis]
    columns = len(spec.spans) or columns
    size = 2 if spec.data_type == "FP16" else 4
    if spec.top_k:
        columns, size = min(spec.top_k, keys), size + index_type(keys).itemsize
    return heads * rows * columns * size


def stage_bytes(plan: Plan, manifest: Manifest, sites: Sequence[tuple[int, int]]) -> int:
    """Return the size of the stages of one sequence before rows or heads are chosen, in bytes.

    Widths that a block takes as they come are counted as 0.

    Args:
        plan: says which stages of which layers.
        manifest: of the model.
        sites: T and S of each layer.
    """
    size = 0
    for layer, stages, (queries, keys) in zip(manifest.layers, plan.stages, sites, strict=False):
        of_sequence: Mapping[Axis, int] = {"T": queries, "S": keys}
        for name in stages | {STAGES[name].source for name in stages if STAGES[name].source}:
            size += math.prod(of_sequence.get(axis, n) for axis, n in lengths(STAGES[name], layer, manifest).items())
    return 4 * size


def head_numbers(plan: Plan, manifest: Manifest, labels: Mapping[str, Labels], queries: int) -> int:
    """Return how many numbers the head computes for one sequence: a row of labels for each row that it reads."""
    asked = [output.spec for output in plan.outputs if STAGES[output.spec.name].is_of_head]
    count = sum((len(spec.rows) or queries) * manifest.logits_dim for spec in asked)
    if plan.predictions is not None:
        for each in manifest.predictors:
            count += rows_read(plan.predictions, each, queries) * (manifest.logits_dim or len(labels[each.name]))
    return count


def index_type(keys: int) -> "np.dtype[np.uint16] | np.dtype[np.int32]":
    """Return the type of top-k indices: the narrower where every position fits."""
    return np.dtype(np.uint16) if keys <= np.iinfo(np.uint16).max + 1 else np.dtype(np.int32)


def _outputs(spec: OutputSpec, manifest: Manifest, field: str) -> Iterator[OutputPlan]:
    """Yield the plan of one output for each layer that a spec asks for; one for all pairs, or layers of a fold."""
    _check_options(spec, manifest, field)
    stage, name = STAGES[spec.name], spec.alias or spec.name
    try:
        if spec.pairs:
            pairs = chosen_pairs(stage, spec.pairs, manifest)
            yield OutputPlan(name, spec, max(layer for layer, _ in pairs), field, tuple(pairs))
            return
        if spec.fold != "none":
            folded = folded_layers(stage, spec.fold, spec.layers, manifest)
            for index in folded:
                _check_heads(spec, manifest.layers[index].heads, field)
            of_heads = spec._replace(reduce="mean" if spec.reduce == "none" else spec.reduce)
            yield OutputPlan(name, of_heads, folded[-1], field, folded=tuple(folded))
            return
        layers = chosen_layers(stage, spec.layers, manifest)
    except NotOfferedError as error:
        raise InvalidRequest(str(error), field=join_path(field, error.option)) from error
    for index in layers:
        layer = manifest.layers[index]
        _check_heads(spec, lengths(stage, layer, manifest)[stage.axes[0]], field)
        end = last_site(index, manifest) if stage.level == "layer" else index
        yield OutputPlan(f"{name}@{layer.name}" if len(layers) > 1 else name, spec, end, field)


def _is_sent_as_computed(output: OutputPlan) -> bool:
    stage = STAGES[output.spec.name]
    return output.spec.is_whole and stage.computed == stage.name and not stage.is_of_head


def _stages(outputs: Sequence[OutputPlan], manifest: Manifest, *, predictions: bool) -> tuple[frozenset[str], ...]:
    needed: list[set[str]] = [set() for _ in manifest.layers]
    for output in outputs:
        for layer in output.layers:
            stage = STAGES[output.spec.name]
            needed[layer].add(head_source(manifest) if stage.is_of_head else stage.computed)
    if predictions:
        needed[-1].add(head_source(manifest))
    if manifest.block != TRANSFORMER and not needed[0] <= WITHOUT_ATTENTION:
        needed[0].add("output")  # in which an overflow shows
    last = max(index for index, stages in enumerate(needed) if stages)
    return tuple(frozenset(stages) for stages in needed[: last + 1])


def head_source(manifest: Manifest) -> str:
    """Return the stage of the last layer that the head reads."""
    return "hidden" if manifest.block == TRANSFORMER else "output"


def _runs_dependent(stages: Sequence[frozenset[str]], manifest: Manifest) -> bool:
    """Return whether a segment that depends on further rows runs behind the last layer."""
    behind = segment_behind(len(stages) - 1, manifest)
    return behind is not None and behind.rows_dependent and not stages[-1].isdisjoint(LISTED)


def _pools(outputs: Sequence[OutputPlan], last: int, manifest: Manifest) -> bool:
    if not manifest.layers[last].HasField("pool"):
        return False
    return all(
        output.spec.name == "output" and output.spec.pool != "none" for output in outputs if output.layer == last
    )


def _check_options(spec: OutputSpec, manifest: Manifest, field: str) -> None:
    if spec.name not in STAGES:
        close = difflib.get_close_matches(spec.name[:64], STAGES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        offered = ", ".join(_offered(manifest))
        raise InvalidRequest(f"there is no {spec.name[:64]!r} among {offered}{hint}", field=join_path(field, "name"))
    stage, given = STAGES[spec.name], spec.given
    if refused := [option for option in OPTIONS if option in given and not stage.takes(option)]:
        raise InvalidRequest(_why_not(stage, refused[0]), field=join_path(field, refused[0]))
    if beside := {"layers", "heads"} & given if spec.pairs else set():
        raise InvalidRequest("stands beside pairs, which name layers and heads", field=join_path(field, min(beside)))
    if spec.fold != "none" and spec.pairs:
        raise InvalidRequest("makes one of layers, not of pairs; `reduce` does so", field=join_path(field, "fold"))
    if beside := {"heads", "reduce"} & given if spec.fold == "rollout" else set():
        words = "rollout is made of the mean of all heads; leave it out"
        raise InvalidRequest(words, field=join_path(field, min(beside)))
    _check_spans(spec, field)


def _check_spans(spec: OutputSpec, field: str) -> None:
    """Check the ranges of keys as far as they do not depend on a sequence."""
    if not spec.spans:
        return
    path = join_path(field, "spans")
    if spec.top_k:
        raise InvalidRequest("stands beside spans, whose sums are sent all; leave it out", field=f"{field}.top_k")
    if len(spec.spans) > MAX_SPANS:
        raise InvalidRequest(f"has {len(spec.spans)} ranges; one output may have {MAX_SPANS}", field=path)
    taken: set[str] = set()
    for span in spec.spans:
        name = repr(span.name[:64])
        if not 0 < len(span.name) <= ALIAS:
            raise InvalidRequest(f"has the name {name}; a name has 1 to {ALIAS} characters", field=path)
        if span.name in taken:
            raise InvalidRequest(f"has the name {name} twice", field=path)
        if span.begin >= span.end:
            reason = f"{name} is from {span.begin} to {span.end}; the end is behind the range, and above its begin"
            raise InvalidRequest(reason, field=path)
        taken.add(span.name)


def _why_not(stage: Stage, option: str) -> str:
    """Return the reason for which a stage does not take an option."""
    match option:
        case _ if stage.is_links and option not in LINK_OPTIONS:
            return f"is not for {stage.name}, whose heads are reduced by their mean"
        case "top" | "sample":
            return f"is for {PREDICTIONS}, not for {stage.name}"
        case "top_k" | "spans" | "fold":
            takers = {"top_k": PAIRWISE_WORDS.replace("`", ""), "spans": "weights and received", "fold": "weights"}
            return f"is for {takers[option]}, not for {stage.name}"
        case "layers" | "pool":
            words = {"layers": "is of the model, not of a layer", "pool": "is not pooled; ask for rows"}
            return f"{stage.name} {words[option]}"
        case _ if stage.name == "output":
            return "output has no heads: they are combined; ask for `heads` or `contributions`"
        case _:
            return f"{stage.name} has no heads"


def _offered(manifest: Manifest) -> Iterator[str]:
    """Yield the name of every output that some layer gives."""
    for stage in STAGES.values():
        if any(offers(stage, layer, manifest) for layer in manifest.layers):
            yield stage.name
    if manifest.predictors:
        yield PREDICTIONS


def _check_heads(spec: OutputSpec, heads: int, field: str) -> None:
    for head in spec.heads:
        if head >= heads:
            raise InvalidRequest(f"there is no head {head}; there are {heads}, from 0", field=join_path(field, "heads"))
    if len(set(spec.heads)) < len(spec.heads):
        raise InvalidRequest("names a head twice", field=join_path(field, "heads"))


def _check_names(outputs: Sequence[OutputPlan]) -> None:
    taken = {PREDICTIONS}
    for output in outputs:
        if len(output.spec.alias) > ALIAS:
            raise InvalidRequest(
                f"names an output by {len(output.spec.alias)} characters; {ALIAS} may be", field=output.field
            )
        if output.name in taken:
            raise InvalidRequest(
                f"the name {output.name[:64]!r} is taken; give this output another `as`", field=output.field
            )
        taken.add(output.name)
