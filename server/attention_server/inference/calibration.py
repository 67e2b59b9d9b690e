"""Random inputs of a model, on which its costs and the soundness of its batches are measured."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from attention_proto.chains import source_chain, target_chain

from attention_server.domain.messages import OutputSpec, Result
from attention_server.inference.engine.protocol import Run
from attention_server.inference.layer import KEYS, LoadedLayer, Tensors
from attention_server.inference.masks import HIDDEN, Vectors
from attention_server.inference.model import LoadedModel
from attention_server.inference.planner import Plan, head_source, make_plan
from attention_server.inference.preprocess import PreparedInput, max_length
from attention_server.inference.sharing import Sharing
from attention_server.scheduling.cost_model import Costs, measure

ANY_WIDTH = 64  # of a head, where a block takes any width
MIX = (1, 3, 2, 1, 8, 3, 17, 5, 33)  # T of the sequences of a pack
STACKED = (1, 2, 4, 8)  # T of sequences that a site computes as one batch; longer ones gain nothing
STACK = 5  # sequences of such a batch
CASES = [(weights, masked) for weights in (False, True) for masked in (False, True)]


class CalibrationInputs:
    """Random sequences of a model, and runs of these; the subject of `cost_model.measure`."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        result = OutputSpec(head_source(model.manifest))
        self._plain = make_plan([result], model.manifest)
        self._weights = make_plan([result, OutputSpec("weights")], model.manifest)
        self._random = np.random.default_rng(0)
        about = target_chain(model.manifest).layers[0]
        query = about.query_dim or ANY_WIDTH * about.heads
        source = source_chain(model.manifest)
        key = source.layers[0].query_dim if source else about.key_dim or query // about.heads * about.key_value_heads
        self._widths = (query, key, about.value_dim or key)

    @property
    def max_length(self) -> int:
        """The largest T that the model takes; 0 for any."""
        source = source_chain(self._model.manifest)
        lengths = [max_length(self._model.manifest), source.max_tokens if source else 0]
        return min((length for length in lengths if length), default=0)

    def clock(self) -> float:
        """Return the seconds that computations of this thread took so far: on a CPU one thread computes."""
        return time.thread_time() if self._model.device == "cpu" else time.perf_counter()

    def draw(self, length: int, count: int, *, masked: bool = False) -> list[PreparedInput]:
        """Draw sequences of a length, with a causal mask or none."""
        added = np.triu(np.full((1, length, length), HIDDEN, np.float32), 1) if masked else None
        return [PreparedInput(*self._vectors(length), None, None, length, length, added) for _ in range(count)]

    def run(self, sequences: Sequence[PreparedInput]) -> object:
        """Compute the output of sequences of one length as one batch."""
        return self._model.answer(sequences, self._plain, Run())()

    def is_sound(self, length: int, count: int) -> bool:
        """Return whether a batch has the same bits as its sequences by themselves, with weights, masks and without."""
        return all(
            self._are_same(self.draw(length, count, masked=masked), plan)
            for plan in (self._plain, self._weights)
            for masked in (False, True)
        )

    @property
    def packs(self) -> bool:
        """Whether sequences of any lengths share a pass."""
        return Sharing(self._model.manifest, self._model.layers, self._model.costs).packs

    def pack_is_sound(self) -> bool:
        """Return whether a pack has the same bits as its sequences by themselves, with weights and without."""
        longest = self.max_length or MIX[-1]
        mix = [each for length in MIX if length <= longest for each in self.draw(length, 1)]
        return all(
            _are_equal(together, alone)
            for plan in (self._plain, self._weights)
            for together, each in zip(self._model.answer(mix, plan, Run())(), mix, strict=True)
            for alone in self._model.answer([each], plan, Run())()
        )

    def _vectors(self, length: int) -> tuple[Vectors, Vectors, Vectors]:
        query, key, value = (self._random.standard_normal((1, length, width), np.float32) for width in self._widths)
        return query, key, value

    def _are_same(self, batch: list[PreparedInput], plan: Plan) -> bool:
        """Compare the first and the last sequence of a batch with each by itself."""
        together = self._model.answer(batch, plan, Run())()
        return all(
            _are_equal(together[place], alone)
            for place in (0, -1)
            for alone in self._model.answer([batch[place]], plan, Run())()
        )


def _are_equal(one: Result, other: Result) -> bool:
    return all(
        np.array_equal(cast("Vectors", one.outputs[name]), cast("Vectors", output))
        for name, output in other.outputs.items()
    )


def measured_costs(model: LoadedModel) -> Costs:
    """Measure a model's costs; its graphs that may be shared were measured before."""
    costs = model.costs
    if Sharing(model.manifest, model.layers, costs).packs:
        costs = replace(costs, stacked=min([longest_stack(each) for each in _different(model.layers)]))
        if not CalibrationInputs(replace(model, costs=costs)).pack_is_sound():
            costs = Costs()
    found = measure(CalibrationInputs(replace(model, costs=costs)))
    return replace(found, shared=costs.shared, stacked=costs.stacked)


def longest_stack(layer: LoadedLayer) -> int:
    """Return the largest of STACKED up to which a site's batch has the bits of each sequence alone; 0 for none."""
    longest, rng = 0, np.random.default_rng(0)
    widths = {"q": layer.about.heads * layer.about.head_dim} | dict(zip(KEYS, layer.key_widths, strict=True))
    for length in STACKED if layer.takes <= widths.keys() else ():
        tensors = {name: rng.standard_normal((STACK, length, width), np.float32) for name, width in widths.items()}
        if not all(_is_same_alone(layer, tensors, weights=weights, masked=masked) for weights, masked in CASES):
            break
        longest = length
    return longest


def _is_same_alone(layer: LoadedLayer, tensors: Tensors, *, weights: bool, masked: bool) -> bool:
    """Return whether batches of two and of all sequences have the bits of each sequence alone."""
    wanted = frozenset(("weights", "scores", "lse") if weights else ())
    length = next(iter(tensors.values())).shape[1]
    added = np.triu(np.full((1, length, length), HIDDEN, np.float32), 1) if masked else None

    def compute(sequences: slice) -> dict[str, Vectors]:
        own = {name: array[sequences] for name, array in tensors.items()}
        stages = layer.stages(own, added, wanted, layer.gives, Run())
        return stages | {name: own[name] for name in layer.gives}

    together = compute(slice(None)), compute(slice(2))
    for place in range(STACK):
        alone = compute(slice(place, place + 1))
        for found in together[: 2 if place < 2 else 1]:  # sequences of the smaller batch
            if not all(np.array_equal(found[name][place], array[0]) for name, array in alone.items()):
                return False
    return True


def _different(layers: Sequence[LoadedLayer]) -> list[LoadedLayer]:
    """Return one site of each set of graphs."""
    return list({tuple(graph.file.name for graph in each.about.attend): each for each in layers}.values())
