"""The preparation of a request: each of its sequences by itself, and the limits on all of them together."""

from functools import partial

from attention_proto.masks import Mask

from attention_server.contexts.store import HeldMemories
from attention_server.domain.limits import Limits
from attention_server.domain.messages import Request, Sequence
from attention_server.errors import InvalidRequest
from attention_server.inference.input_checker import InputChecker
from attention_server.inference.input_profile import InputProfile
from attention_server.inference.model import LoadedModel
from attention_server.inference.plan_cache import CachedPlan
from attention_server.inference.prediction_plan import sampling_seed
from attention_server.inference.preprocess import PreparedInput

MAX_FAULTS = 64  # that one error names


def prepare_request(
    request: Request, model: LoadedModel, cached_plan: CachedPlan, held: HeldMemories, limits: Limits
) -> tuple[list[PreparedInput], list[InputProfile]]:
    """Validate and prepare every sequence, within the limits on the whole request.

    Args:
        request: the request.
        model: the leased model version.
        cached_plan: the plan of its outputs.
        held: receives the memories that sequences name.
        limits: on one request.

    Raises:
        InvalidRequest: the model cannot take a sequence; the error names it, and the further ones that it cannot take.
        NotFound: a memory is not kept.
        TooLarge: the request is over a limit.
    """
    if not request.inputs:
        raise InvalidRequest("send at least one sequence", field="inputs")
    prepared: list[PreparedInput] = []
    profiles: list[InputProfile] = []
    answer_bytes = work_bytes = 0
    seed = sampling_seed(request.outputs)
    faults: list[tuple[str, str]] = []  # of sequences; an error itself would refer to this frame
    checker, mask = model.checker, request.mask
    for sequence in request.inputs:
        try:
            if sequence.part is None:
                parts = checker.prepare(sequence, cached_plan, mask, held, limits)
            else:
                parts = _prepare_part(sequence, mask, checker, cached_plan, held, limits)
        except InvalidRequest as error:
            if sequence.part is not None or not _is_of(error, sequence):
                raise
            faults.append((error.field, error.message))
            if len(faults) == MAX_FAULTS:
                break
            continue
        for each, profile in parts if not faults else ():
            prepared.append(each if seed is None else each._replace(seed=seed))
            profiles.append(profile)
            work_bytes += (profile.work_bytes + profile.head_bytes) * each.batch
            answer_bytes += profile.answer_bytes * each.batch
            if work_bytes > limits.work_bytes or answer_bytes > limits.answer_bytes:
                longest = max([max(one.queries, one.keys) for one in profiles])
                limits.check_work(work_bytes, longest)
                limits.check_answer(
                    answer_bytes, partial(checker.fitting_answer, each, cached_plan.plan, limits.answer_bytes)
                )
    if faults:
        (field, message), *others = faults
        raise InvalidRequest(message, field=field, others=others)
    return prepared, profiles


def _is_of(error: InvalidRequest, sequence: Sequence) -> bool:
    """Return whether a fault is one of this sequence alone."""
    return bool(sequence.path) and error.field.startswith(sequence.path)


def _prepare_part(
    sequence: Sequence, mask: Mask, checker: InputChecker, cached_plan: CachedPlan, held: HeldMemories, limits: Limits
) -> list[tuple[PreparedInput, InputProfile]]:
    """Validate and prepare a batch or a sequence of one; an error names the sequence."""
    try:
        return checker.prepare(sequence, cached_plan, mask, held, limits)
    except InvalidRequest as error:
        if sequence.batch > 1:
            for one in sequence.each():
                _prepare_part(one, mask, checker, cached_plan, held, limits)
        raise error.of_part(sequence.part) from error
