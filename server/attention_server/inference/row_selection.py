"""Which rows of the last layer have to be computed, and which of the computed rows an output or a predictor reads."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Predictor
from attention_proto.stages import OF_KEYS, STAGES
from numpy.typing import NDArray

from attention_server.domain.messages import OutputSpec
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.plan_cache import is_small
from attention_server.inference.planner import OutputPlan, Plan
from attention_server.inference.postprocess import Rows, read_rows
from attention_server.inference.preprocess import PreparedInput

MAX_MEANS = 256  # kept for specs and lengths that come again


def computed_rows(
    prepared: PreparedInput, plan: Plan, layers: Sequence[LoadedLayer], predictors: Sequence[Predictor]
) -> Rows | None:
    """Return the query rows that the last layer has to compute, ascending; None for all."""
    last = len(plan.stages) - 1
    keeps = prepared.continuation is not None and prepared.continuation.keeps
    if not plan.cuts_rows or (keeps and last + 1 < len(layers)):  # layers behind it run, for the keys that are kept
        return None
    read = [
        read_rows(output.spec, *unmasked_rows(output, layers, prepared))
        for output in plan.outputs
        if last in output.layers and is_cut(output.spec.name)
    ]
    if plan.predictions is not None:
        read += [predictor_rows(predictor, prepared, plan.predictions.rows) for predictor in predictors]
    chosen = [rows for rows in read if rows is not None]
    if len(chosen) < len(read) or not sum(map(len, chosen)):
        return None
    rows = np.unique(np.concatenate(chosen))
    return rows if len(rows) < layers[last].lengths(prepared)[0] else None


def unmasked_rows(
    output: OutputPlan, layers: Sequence[LoadedLayer], prepared: PreparedInput
) -> tuple[int, NDArray[np.bool_] | None]:
    """Return the number of rows of an output's stage, and whether each may attend, or be attended, in a layer of it.

    None stands for all. Where rows are not pooled, masked ones are not looked for: such rows are sent as all rows.
    """
    if output.spec.pool == "none":
        return layers[min(output.layers)].lengths(prepared)[output.spec.name in OF_KEYS], None
    read = [layers[index].rows(output.spec.name, prepared) for index in output.layers]
    choices = [chosen for _, chosen in read if chosen is not None]
    return read[0][0], np.logical_or.reduce(choices) if len(choices) == len(read) else None


def is_cut(stage: str) -> bool:
    """Return whether a stage of the last layer has the computed rows alone: k, v and embeddings have all."""
    return stage not in OF_KEYS and (STAGES[stage].level != "model" or STAGES[stage].is_of_head)


def predictor_rows(predictor: Predictor, prepared: PreparedInput, chosen: Sequence[int]) -> Rows:
    """Return the rows that a predictor reads, or takes the mean of: the chosen ones, in order, or its own."""
    if chosen:
        return np.array(chosen, np.intp) % prepared.queries
    match predictor.rows:
        case Predictor.ROWS_FIRST:
            return np.array([0])
        case Predictor.ROWS_LAST:
            return np.array([prepared.queries - 1])
        case Predictor.ROWS_TOKENS:
            words = prepared.tokens.vocabulary if prepared.tokens else ()  # vectors have no tokens
            return np.array([row for row, token in enumerate(words) if token in predictor.tokens], np.intp)
        case _:
            return np.arange(prepared.queries)


def positions(rows: Rows | None, computed: Rows | None) -> Rows | None:
    """Return the positions of rows among the computed ones. None stands for all, of both."""
    return rows if rows is None or computed is None else np.searchsorted(computed, rows)


def pooling(specs: tuple[OutputSpec, ...], queries: int) -> tuple[Rows | None, NDArray[np.float32]]:
    """Return the rows that pooled outputs are means of, and the means' weights.

    Returns:
        The rows, ascending, or None for all; and the weight of each row in each mean, [P, rows], read-only.
    """
    return (_kept_pooling if is_small(specs) else _pooling)(specs, queries)


def _pooling(specs: tuple[OutputSpec, ...], queries: int) -> tuple[Rows | None, NDArray[np.float32]]:
    read = [read_rows(spec, queries, None) for spec in specs]
    some = [rows for rows in read if rows is not None]
    computed = np.unique(np.concatenate(some)) if len(some) == len(read) else None
    weights = np.zeros((len(specs), queries if computed is None else len(computed)), np.float32)
    for weight, rows in zip(weights, read, strict=True):
        places = positions(rows, computed)
        weight[slice(None) if places is None else places] = 1 / (queries if rows is None else len(rows))
    weights.flags.writeable = False
    return computed, weights


_kept_pooling = lru_cache(MAX_MEANS)(_pooling)
