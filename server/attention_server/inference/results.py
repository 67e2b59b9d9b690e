"""Results made of computed stages: outputs shaped as asked for, predictions, and the check for overflow."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter

import numpy as np
from attention_proto.stages import STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import OutputValue, Prediction, Result
from attention_server.errors import InvalidRequest
from attention_server.inference import validation as check
from attention_server.inference.engine.protocol import Run
from attention_server.inference.forward import Forward
from attention_server.inference.head_results import HeadResults, StepsHead
from attention_server.inference.key_spans import key_ranges
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.masks import HIDDEN, Vectors
from attention_server.inference.pack import Stages
from attention_server.inference.planner import OutputPlan, Plan, checked_stages, head_source
from attention_server.inference.postprocess import Rows, read_rows, shape_stage
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.reading import Block
from attention_server.inference.reductions import Reductions, make_reduction, result_of
from attention_server.inference.row_selection import is_cut, positions, unmasked_rows


def whole_results(batch: Sequence[PreparedInput], plan: Plan, stages: list[Stages]) -> list[Result]:
    """Return one result for each of `batch`, of stages that are sent as computed.

    Raises:
        InvalidRequest: a number overflowed.
    """
    _check_overflow(batch, plan, stages)
    results, begin = [], 0
    for each in batch:
        end = begin + each.batch
        place = begin if each.batch == 1 else slice(begin, end)
        results.append(
            _result(each, {output.name: stages[output.layer][output.spec.name][place] for output in plan.outputs})
        )
        begin = end
    return results


def shaped_results(
    batch: Sequence[PreparedInput],
    plan: Plan,
    stages: list[Stages],
    computed: Rows | None,
    forward: Forward,
    run: Run,
    reductions: Reductions | None = None,
) -> list[Result]:
    """Return one result for each sequence of `batch`, with outputs shaped as asked for, and predictions.

    Args:
        batch: prepared sequences, each with B = 1.
        plan: says which outputs.
        stages: of each layer that was computed.
        computed: the rows of the last layer that were computed; None for all.
        forward: computes predictions.
        run: the computation that this is a part of.
        reductions: the outputs of a long sequence that were made block by block; None for none.

    Raises:
        InvalidRequest: a number overflowed, or FP16 cannot hold it.
    """
    _check_overflow(batch, plan, stages)
    results = []
    by_block = {} if reductions is None else reductions.results()
    steps = None
    source = head_source(forward.manifest)
    if len(batch) > 1 and batch[0].continuation is not None and source in stages[-1] and forward.head_is_by_row:
        steps = StepsHead(forward, stages[-1][source][:, 0])
    for i, each in enumerate(batch):
        own = [{name: stage[i] for name, stage in of.items()} for of in stages]
        head = HeadResults(own[-1], computed, each, forward, run, None if steps is None else partial(steps.run, i))
        outputs = {
            output.name: by_block[output.name]
            if output.name in by_block
            else head.logits(output)
            if STAGES[output.spec.name].is_of_head
            else _output(output, own, each, computed, forward.layers)
            for output in plan.outputs
        }
        predictions = None if plan.predictions is None else tuple(head.predictions(plan.predictions))
        results.append(_result(each, outputs, predictions))
    return results


def pooled_results(
    batch: Sequence[PreparedInput],
    plan: Plan,
    stages: list[Stages],
    pooled: Sequence[OutputPlan],
    layers: Sequence[LoadedLayer],
) -> list[Result]:
    """Return one result for each sequence of `batch`; of the last layer `output` has the pooled outputs for rows.

    Args:
        batch: prepared sequences, each with B = 1.
        plan: says which outputs.
        stages: of each layer that was computed.
        pooled: the outputs of the last layer.
        layers: of the model.

    Raises:
        InvalidRequest: a number overflowed, or FP16 cannot hold it.
    """
    _check_overflow(batch, plan, stages)
    results = []
    for i, each in enumerate(batch):
        of_last = {
            output.name: shape_stage(stages[-1]["output"][i, place, None], None, output.spec, None, output.field)
            for place, output in enumerate(pooled)
        }
        outputs = {
            output.name: of_last[output.name]
            if output.name in of_last
            else _output(output, [{name: stage[i] for name, stage in of.items()} for of in stages], each, None, layers)
            for output in plan.outputs
        }
        results.append(_result(each, outputs))
    return results


def results_or_errors(
    batch: Sequence[PreparedInput], make: Callable[[], list[Result]]
) -> list[Result | InvalidRequest]:
    """Return the results of a batch of a pack; in place of each its error, where one of the batch fails."""
    try:
        return [*make()]
    except InvalidRequest as error:
        return [error] * len(batch)


def in_order(
    found: Sequence[Sequence[Result | InvalidRequest]], places: Sequence[Sequence[int]]
) -> list[Result | InvalidRequest]:
    """Return the results of batches in the order of the sequences; `places` are those of each batch."""
    placed = [pair for of_batch, at in zip(found, places, strict=True) for pair in zip(at, of_batch, strict=True)]
    return [result for _, result in sorted(placed, key=itemgetter(0))]


def raise_first(found: Sequence[Result | InvalidRequest]) -> list[Result]:
    """Return results; raise the first error among them."""
    for each in found:
        if isinstance(each, InvalidRequest):
            raise each
    return found  # type: ignore[return-value] # without errors


def _result(
    prepared: PreparedInput, outputs: dict[str, OutputValue], predictions: tuple[Prediction, ...] | None = None
) -> Result:
    memory_tokens = prepared.memory.tokens if prepared.memory else prepared.memory_tokens
    return Result(outputs, prepared.tokens, memory_tokens, predictions, prepared.batch)


def _check_overflow(batch: Sequence[PreparedInput], plan: Plan, stages: list[Stages]) -> None:
    for wanted, of in zip(plan.stages, stages, strict=True):
        for name in checked_stages(wanted) & of.keys():  # a long sequence's other stages are checked by blocks
            # Of several steps the keys differ in number: their stages are lists of arrays.
            for stage in of[name] if isinstance(of[name], list) else (of[name],):
                check.no_overflow(stage, batch[0].path)


def _output(
    output: OutputPlan,
    stages: Sequence[Mapping[str, Vectors]],
    prepared: PreparedInput,
    computed: Rows | None,
    layers: Sequence[LoadedLayer],
) -> OutputValue:
    """Return one output, of every layer's stages; of the last layer some rows may have been computed."""
    spec = output.spec
    stage_of = STAGES[spec.name]
    if output.folded or stage_of.sums_rows or stage_of.is_links:
        return _reduced(output, stages, prepared, computed, layers)
    rows = read_rows(spec, *unmasked_rows(output, layers, prepared))

    def places(layer: int) -> Rows | None:
        of_some = layer == len(stages) - 1 and is_cut(spec.name)
        return positions(rows, computed if of_some else None)

    def hidden(layer: int) -> NDArray[np.bool_] | None:
        added = layers[layer].mask(prepared) if spec.top_k else None
        return None if added is None else (added if rows is None else added[:, rows]) == HIDDEN

    if not output.pairs:
        stage, layer = stages[output.layer][stage_of.computed], output.layer
        ranges = key_ranges(output, layers[layer], prepared)
        return shape_stage(stage, places(layer), spec, hidden(layer), output.field, ranges)
    heads, masks = [], []
    for layer, head in output.pairs:
        of_head, chosen, mask = stages[layer][stage_of.computed][head], places(layer), hidden(layer)
        heads.append(of_head if chosen is None else of_head[chosen])
        masks.append(np.False_ if mask is None else mask[head % len(mask)])  # one mask may serve all heads
    stage = np.stack(heads)
    of_pairs = np.stack([np.broadcast_to(mask, stage.shape[1:]) for mask in masks]) if spec.top_k else None
    return shape_stage(stage, None, spec, of_pairs, output.field, key_ranges(output, layers[output.layer], prepared))


def _reduced(
    output: OutputPlan,
    stages: Sequence[Mapping[str, Vectors]],
    prepared: PreparedInput,
    computed: Rows | None,
    layers: Sequence[LoadedLayer],
) -> OutputValue:
    """Return an output of all rows, or of layers that are made one: each layer is one block of rows."""
    last = len(stages) - 1
    reduction = make_reduction(output, prepared, layers, computed, last)
    name = STAGES[output.spec.name].computed
    for layer in output.folded or output.layers:
        stage = stages[layer][name]
        mask = layers[layer].mask(prepared) if output.spec.top_k else None
        mask = mask[:, computed] if mask is not None and computed is not None and layer == last else mask
        sums = reduction.sums()
        reduction.add(layer, Block(slice(0, stage.shape[1]), slice(0, stage.shape[2]), mask, {name: stage}), sums)
        reduction.close([sums])
    return result_of(reduction)
