"""Execution plans, kept for the next request of the same outputs."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import lru_cache

from attention_proto.attention.v1.attention_pb2 import Manifest

from attention_server.domain.messages import OutputSpec, Sample
from attention_server.inference.input_profile import InputProfile
from attention_server.inference.planner import Plan, make_plan
from attention_server.inference.site_changes import Changes
from attention_server.scheduling.cost_model import CostCorrection

MAX_PLANS = 128  # kept for each model
MAX_SPEC_SIZE = 64  # names, rows, heads and characters of the specs of a plan that is kept


@dataclass(slots=True, eq=False)
class CachedPlan:
    """An execution plan with its cost correction and the profiles of inputs by shape.

    Attributes:
        plan: the plan.
        correction: the factor between measured and predicted cost; learned from each run.
        profiles: the profiles of sequences that were prepared for this plan, by shape.
    """

    plan: Plan
    correction: CostCorrection = field(default_factory=CostCorrection)
    profiles: dict[Hashable, InputProfile] = field(default_factory=dict)


class PlanCache:
    """The latest plans of one model. Plans of long specs are not kept: callers choose the length.

    Args:
        manifest: of the model.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        # Of draws with many seeds there is one plan; each prepared sequence has its seed.
        self._kept = lru_cache(MAX_PLANS)(lambda specs, changes: CachedPlan(make_plan(specs, manifest, changes)))

    def plan(self, specs: tuple[OutputSpec, ...], changes: Changes = ()) -> CachedPlan:
        """Return the plan of a request's outputs, and of its changes.

        Raises:
            InvalidRequest: the model does not offer it.
        """
        for spec in specs:
            if spec.sample is not None:
                specs = tuple([each if each.sample is None else _without_seed(each, each.sample) for each in specs])
                break
        if is_small(specs):
            return self._kept(specs, changes)
        return CachedPlan(make_plan(specs, self._manifest, changes))


def is_small(specs: tuple[OutputSpec, ...]) -> bool:
    """Return whether specs are short enough to be kept as a key of a cache."""
    if len(specs) > MAX_SPEC_SIZE:
        return False
    for spec in specs:  # a generator would take longer than the comparison
        if not (spec.rows or spec.heads or spec.alias or spec.layers or spec.pairs or spec.spans):
            continue
        names = (spec.alias, *spec.layers, *spec.pairs, *[span.name for span in spec.spans])
        if len(spec.rows) + len(spec.heads) + sum(map(len, names)) > MAX_SPEC_SIZE:
            return False
    return True


def _without_seed(spec: OutputSpec, sample: Sample) -> OutputSpec:
    return spec._replace(sample=sample._replace(seed=None))
