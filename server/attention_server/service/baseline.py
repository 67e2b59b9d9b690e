"""Outputs behind another prefix, subtracted: the part of an output that a sequence owes to its own prefix.

The sequences are computed twice in one job, behind their own memories and behind the baseline, by the same plan.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from attention_proto.stages import STAGES

from attention_server.contexts.store import HeldMemories
from attention_server.domain.messages import Array, OutputSpec, Request, Result
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.model import LoadedModel
from attention_server.inference.plan_cache import CachedPlan


class Baseline(NamedTuple):
    """The baseline of a request.

    Attributes:
        fields: paths of the outputs from which it is subtracted; empty for none.
        memory: id of the prefix.
    """

    fields: tuple[str, ...] = ()
    memory: str = ""

    def subtract(self, results: Sequence[Result], cached_plan: CachedPlan) -> list[Result]:
        """Return the results of the sequences, of which those behind the baseline are the second half."""
        names = [output.name for output in cached_plan.plan.outputs if output.field in self.fields]
        half = len(results) // 2
        return [_difference(*each, names) for each in zip(results[:half], results[half:], strict=True)]


NO_BASELINE = Baseline()


def without_baselines(outputs: Sequence[OutputSpec]) -> tuple[tuple[OutputSpec, ...], Baseline]:
    """Return the outputs to plan, and the baseline that some of them name.

    Raises:
        InvalidRequest: an output takes no baseline, or there are two.
    """
    for each in outputs:  # most requests name none
        if each.baseline:
            break
    else:
        return tuple(outputs), NO_BASELINE
    named = {each.path or f"outputs[{i}]": each for i, each in enumerate(outputs) if each.baseline}
    for field, spec in named.items():
        _check(spec, join_path(field, "baseline"))
    memory = next((each.baseline for each in named.values()), "")
    for field, spec in named.items():
        if spec.baseline != memory:
            raise InvalidRequest(
                "names a second memory; one request has one baseline", field=join_path(field, "baseline")
            )
    return tuple(each._replace(baseline="") for each in outputs), Baseline(tuple(named), memory)


def behind_baseline(request: Request, baseline: Baseline, model: LoadedModel, held: HeldMemories) -> Request:
    """Return a request with each of its sequences once more, behind the baseline.

    Raises:
        InvalidRequest: a sequence goes on behind no prefix, or behind one of another length.
        NotFound: the caller keeps no such memory.
    """
    if not baseline.fields:
        return request
    field = join_path(baseline.fields[0], "baseline")
    other = held.get(baseline.memory, model.name, model.version, field, model.digest)
    for sequence in request.inputs:
        path = join_path(sequence.path, "memory")
        if not sequence.memory:
            raise InvalidRequest("is missing: a baseline stands in place of the memory of a sequence", field=path)
        own = held.get(sequence.memory, model.name, model.version, path, model.digest)
        if (own.source_length, own.prefix_length) != (other.source_length, other.prefix_length):
            raise InvalidRequest(
                f"has {other.length} positions, and the memory of the sequence {own.length}; "
                "a baseline is as long as the memory that it stands in for",
                field=field,
            )
    behind = [each._replace(memory=baseline.memory, extend=False) for each in request.inputs]
    return request._replace(inputs=(*request.inputs, *behind))


def _check(spec: OutputSpec, field: str) -> None:
    if spec.name not in STAGES or not STAGES[spec.name].takes("baseline"):
        raise InvalidRequest("is subtracted from numbers; this output has none", field=field)
    if spec.top_k:
        raise InvalidRequest("is subtracted from whole rows; leave top_k out", field=field)
    if spec.data_type != "FP32":
        raise InvalidRequest("is subtracted from FP32; leave data_type out", field=field)


def _difference(own: Result, behind: Result, names: Sequence[str]) -> Result:
    outputs = dict(own.outputs)
    for name in names:
        outputs[name] = _minus(outputs[name], behind.outputs[name])  # type: ignore[arg-type] # arrays, as checked
    return own._replace(outputs=outputs)


def _minus(own: Array, behind: Array) -> Array:
    """Subtract; equal infinities differ by 0."""
    with np.errstate(invalid="ignore"):
        return np.where(own == behind, np.float32(0), np.subtract(own, behind))
