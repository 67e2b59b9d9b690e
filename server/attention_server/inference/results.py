"""Results made of computed stages: outputs shaped as asked for, predictions, and the check for overflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import cast

import numpy as np
from attention_proto.stages import STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import OutputValue, Prediction, Result
from attention_server.errors import InvalidRequest
from attention_server.inference import validation as check
from attention_server.inference.alignment import align, largest_keys
from attention_server.inference.engine.protocol import Run
from attention_server.inference.forward import Forward
from attention_server.inference.head_results import HeadResults, StepsHead
from attention_server.inference.key_spans import key_ranges
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.masks import HIDDEN, Vectors
from attention_server.inference.pack import Stages
from attention_server.inference.planner import OutputPlan, Plan, checked_stages, head_source
from attention_server.inference.postprocess import Rows, read_rows, shape_stage
from attention_server.inference.preprocess import PreparedInput, separators
from attention_server.inference.reading import Block
from attention_server.inference.reductions import Reductions, make_reduction, result_of
from attention_server.inference.row_selection import is_cut, positions, unmasked_rows
from attention_server.inference.row_statistics import OVER_ROWS


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
    if output.folded:
        return _folded(output, stages, prepared, computed, layers)
    rows = read_rows(spec, *unmasked_rows(output, layers, prepared))
    if STAGES[spec.name].is_links:
        mean = replace(output, spec=spec._replace(name=STAGES[spec.name].source, reduce="mean"))
        (weights,) = cast("Vectors", _output(mean, stages, prepared, computed, layers))
        return align(largest_keys(weights), np.arange(len(weights)) if rows is None else rows)

    def places(layer: int) -> Rows | None:
        of_some = layer == len(stages) - 1 and is_cut(spec.name)
        return positions(rows, computed if of_some else None)

    def hidden(layer: int) -> NDArray[np.bool_] | None:
        added = layers[layer].mask(prepared) if spec.top_k else None
        return None if added is None else (added if rows is None else added[:, rows]) == HIDDEN

    computed_name = STAGES[spec.name].computed
    if not output.pairs:
        stage, layer = stages[output.layer][computed_name], output.layer
        if STAGES[spec.name].sums_rows:
            return _summed(output, stage, places(layer), rows, hidden(layer), prepared, layers)
        ranges = key_ranges(output, layers[layer], prepared)
        return shape_stage(stage, places(layer), spec, hidden(layer), output.field, ranges)
    heads, masks = [], []
    for layer, head in output.pairs:
        of_head, chosen, mask = stages[layer][computed_name][head], places(layer), hidden(layer)
        heads.append(of_head if chosen is None else of_head[chosen])
        masks.append(np.False_ if mask is None else mask[head % len(mask)])  # one mask may serve all heads
    stage = np.stack(heads)
    of_pairs = np.stack([np.broadcast_to(mask, stage.shape[1:]) for mask in masks]) if spec.top_k else None
    if STAGES[spec.name].sums_rows:
        return _summed(output, stage, None, rows, of_pairs, prepared, layers)
    return shape_stage(stage, None, spec, of_pairs, output.field, key_ranges(output, layers[output.layer], prepared))


def _folded(
    output: OutputPlan,
    stages: Sequence[Mapping[str, Vectors]],
    prepared: PreparedInput,
    computed: Rows | None,
    layers: Sequence[LoadedLayer],
) -> OutputValue:
    """Return an output of layers that are made one: each is one block of rows."""
    last = len(stages) - 1
    reduction = make_reduction(output, prepared, layers, computed, last)
    for layer in output.folded:
        weights = stages[layer][output.spec.name]
        mask = layers[layer].mask(prepared) if output.spec.top_k else None
        mask = mask[:, computed] if mask is not None and computed is not None and layer == last else mask
        sums = reduction.sums()
        reduction.add(
            layer, Block(slice(0, weights.shape[1]), slice(0, weights.shape[2]), mask, {"weights": weights}), sums
        )
        reduction.close([sums])
    return result_of(reduction)


def _summed(
    output: OutputPlan,
    weights: Vectors,
    places: Rows | None,
    rows: Rows | None,
    hidden: NDArray[np.bool_] | None,
    prepared: PreparedInput,
    layers: Sequence[LoadedLayer],
) -> OutputValue:
    """Return an output that is one for all rows chosen.

    Args:
        output: its plan.
        weights: [H, computed rows, S].
        places: of the rows chosen among the computed ones; None for all.
        rows: the positions of these rows in the sequence; None for all.
        hidden: which keys are masked in each row, for top k.
        prepared: the sequence.
        layers: of the model.
    """
    chosen = weights if places is None else weights[:, places]
    sums, finish = OVER_ROWS[output.spec.name]
    layer = layers[output.layer]
    at = layer.first(prepared) + (np.arange(chosen.shape[-2]) if rows is None else rows)
    found = finish(sums(chosen, at, separators(prepared, layer.axes)))
    whole = found[:, None].astype(np.float32)  # one row, which the pooling of one row removes
    spec, ranges = output.spec._replace(pool="first"), key_ranges(output, layer, prepared)
    return shape_stage(whole, None, spec, hidden, output.field, ranges)
