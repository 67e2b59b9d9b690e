"""The plan of a request's predictions: rows, the number of labels, and the draw of a label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from attention_proto.attention.v1.attention_pb2 import Manifest, Predictor
from attention_proto.stages import PREDICTION_OPTIONS

from attention_server.domain.messages import CANDIDATE_BYTES, OutputSpec, Sample
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.labels import Labels

ONE_ROW = (Predictor.ROWS_FIRST, Predictor.ROWS_LAST, Predictor.ROWS_MEAN)


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """The predictions of a request.

    Attributes:
        field: of the output that asks for predictions; empty where these are sent by default.
        rows: the rows chosen; those that each predictor reads when empty.
        top: the labels of each prediction; 0 for one alone.
        sample: the draw of each label; None for the most probable one.
    """

    field: str = ""
    rows: tuple[int, ...] = ()
    top: int = 0
    sample: Sample | None = None


def plan_predictions(
    spec: OutputSpec, manifest: Manifest, field: str, earlier: PredictionPlan | None
) -> PredictionPlan:
    """Plan the predictions of an output.

    Args:
        spec: the output.
        manifest: of the model.
        field: of the output in the request.
        earlier: the plan of the outputs before it that ask for predictions too, which are made once.

    Raises:
        InvalidRequest: the model has no head, an option is not offered, or differs from the one of an output before.
    """
    if not manifest.predictors:
        raise InvalidRequest("this model has no head, so it predicts nothing", field=join_path(field, "name"))
    if refused := spec.given - PREDICTION_OPTIONS:
        words = f"predictions take {', '.join(sorted(PREDICTION_OPTIONS))} alone"
        raise InvalidRequest(words, field=join_path(field, min(refused)))
    if spec.rows:
        _check_choice_of_rows(manifest.predictors, join_path(field, "rows"))
    if spec.sample is not None:
        _check_sample(spec.sample, manifest, join_path(field, "sample"))
    if earlier is None:
        return PredictionPlan(field, spec.rows, spec.top, spec.sample)
    for name in ("rows", "sample"):
        if getattr(spec, name) != getattr(earlier, name):
            words = f"differs from that of {earlier.field}; predictions are made once"
            raise InvalidRequest(words, field=join_path(field, name))
    return replace(earlier, top=max(earlier.top, spec.top))


def sampling_seed(specs: Sequence[OutputSpec]) -> int | None:
    """Return the seed of a request's draws; None for new draws.

    Raises:
        InvalidRequest: there are two.
    """
    for spec in specs:  # most requests draw nothing
        if spec.sample is not None:
            break
    else:
        return None
    samples = [spec.sample for spec in specs if spec.sample is not None]
    seeds = {sample.seed for sample in samples}
    if len(seeds) > 1:
        raise InvalidRequest("have samples of several seeds; predictions are made once", field="outputs")
    return seeds.pop()


def candidate_bytes(
    plan: PredictionPlan, predictors: Sequence[Predictor], labels: Mapping[str, Labels], queries: int
) -> int:
    """Return the size of the most probable labels of one sequence's predictions, in bytes.

    Args:
        plan: of the predictions.
        predictors: of the model.
        labels: of each predictor.
        queries: T.
    """
    counts = [rows_read(plan, each, queries) * min(plan.top, len(labels[each.name])) for each in predictors]
    return CANDIDATE_BYTES * sum(counts)


def rows_read(plan: PredictionPlan, predictor: Predictor, queries: int) -> int:
    """Return the most rows that a predictor reads of a sequence of T = `queries`."""
    return len(plan.rows) or (1 if predictor.rows in ONE_ROW else queries)


def _check_choice_of_rows(predictors: Sequence[Predictor], field: str) -> None:
    for each in predictors:
        if not each.vocabulary and each.rows != Predictor.ROWS_ALL:
            words = f"predictor {each.name!r} of this model reads rows of its own; leave them out"
            raise InvalidRequest(words, field=field)


def _check_sample(sample: Sample, manifest: Manifest, field: str) -> None:
    if not 0 < sample.temperature < math.inf:
        raise InvalidRequest(
            f"must be above 0 and finite, not {sample.temperature:g}; the most probable label is told without `sample`",
            field=join_path(field, "temperature"),
        )
    if not 0 < sample.top_p <= 1:
        raise InvalidRequest(f"must be above 0 and at most 1, not {sample.top_p:g}", field=join_path(field, "top_p"))
    labels = manifest.logits_dim or max(len(each.labels) for each in manifest.predictors)
    if 0 < labels < sample.top_k:
        raise InvalidRequest(f"is {sample.top_k}; there are {labels} labels", field=join_path(field, "top_k"))
