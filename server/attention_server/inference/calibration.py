"""Random inputs of a model, on which its costs and the soundness of its batches are measured."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from attention_proto.chains import source_chain, target_chain

from attention_server.domain.messages import OutputSpec
from attention_server.inference.engine.protocol import Run
from attention_server.inference.masks import HIDDEN, Vectors
from attention_server.inference.model import LoadedModel
from attention_server.inference.planner import Plan, head_source, make_plan
from attention_server.inference.preprocess import PreparedInput, max_length

ANY_WIDTH = 64  # of a head, where a block takes any width


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

    def _vectors(self, length: int) -> tuple[Vectors, Vectors, Vectors]:
        query, key, value = (self._random.standard_normal((1, length, width), np.float32) for width in self._widths)
        return query, key, value

    def _are_same(self, batch: list[PreparedInput], plan: Plan) -> bool:
        """Compare the first and the last sequence of a batch with each by itself."""
        together = self._model.answer(batch, plan, Run())()
        return all(
            np.array_equal(cast("Vectors", together[place].outputs[name]), cast("Vectors", output))
            for place in (0, -1)
            for alone in self._model.answer([batch[place]], plan, Run())()
            for name, output in alone.outputs.items()
        )
