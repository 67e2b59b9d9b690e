"""The rule of which sequences may share a pass: those that have the same bits in company as alone.

There are two ways. In a *pack* the rows of sequences of any lengths run through each segment together; sites compute
one sequence at a time, but single steps behind prefixes, and short sequences of one length, are one batch at a site.
In a *batch* sequences of one kind run together through every graph: in blocks, of which one graph holds projections and
attention. Loading measures which graphs and lengths have the bits of a sequence alone, and where it pays.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest, Predictor
from attention_proto.chains import source_chain
from attention_proto.folder import TRANSFORMER

from attention_server.contexts.past import Continuation
from attention_server.inference.layer import KEYS, LoadedLayer
from attention_server.inference.masks import LimitedMasks, LongMask
from attention_server.inference.planner import Plan
from attention_server.inference.preprocess import PreparedInput
from attention_server.scheduling.cost_model import MAX_BATCH, Costs


class Company(NamedTuple):
    """The sequences that one may share a pass with.

    Attributes:
        kind: equal for sequences that may share a pass of the same plan; None for one that runs alone.
        max_rows: query rows of all sequences of a pass.
        max_batch: the largest batch of sequences of its length that every site computes at once.
        factor: of the cost of a sequence alone: its cost in a pass.
    """

    kind: Hashable | None = None
    max_rows: int = 0
    max_batch: int = 1
    factor: float = 1.0


ALONE = Company()


@dataclass(frozen=True)
class Sharing:
    """The rule for one model.

    Attributes:
        manifest: of the model.
        layers: its layers.
        costs: measured, with the graphs and lengths that are sound.
    """

    manifest: Manifest
    layers: Sequence[LoadedLayer]
    costs: Costs

    def company(self, prepared: PreparedInput, plan: Plan) -> Company:
        """Return the sequences that one may share a pass with; not of a long one, computed in blocks of rows."""
        continuation, queries = prepared.continuation, prepared.queries
        length = queries if self.packs or (continuation is not None and queries == 1) else max(queries, prepared.keys)
        count, factor = self.costs.best_batch(length)
        if count < 2:  # a batch has two sequences
            return ALONE
        if self.packs:
            keeps = continuation is not None and continuation.keeps
            kind: Hashable = ("pack", prepared.query is None, keeps)
            return Company(kind, self.costs.pack_rows, count if self._is_stacked(prepared) else 1, factor)
        kind = self._batch_kind(prepared, plan)
        return ALONE if kind is None else Company(kind, count * queries, count, factor)

    def batches(self, sequences: Sequence[PreparedInput], plan: Plan) -> list[list[int]]:
        """Return the sequences of a pass, by place, in the batches that each site computes at once."""
        if len(sequences) == 1 or not self.packs:
            return [list(range(len(sequences)))]
        batches: list[list[int]] = []
        open_batches: dict[Hashable, list[int]] = {}
        for place, each in enumerate(sequences):
            kind = self._batch_kind(each, plan) if self._is_stacked(each) else None
            batch = open_batches.get(kind)
            if kind is None or batch is None or len(batch) >= MAX_BATCH:
                batch = []
                batches.append(batch)
                open_batches[kind] = batch
            batch.append(place)
        return batches

    @cached_property
    def packs(self) -> bool:
        """Whether sequences of any lengths run through segments together."""
        is_chain = self.manifest.block == TRANSFORMER and source_chain(self.manifest) is None
        return is_chain and any(each.graph.name in self.costs.shared for each in self.manifest.segments)

    @cached_property
    def _packs_all(self) -> bool:
        """Whether every segment runs on the rows of several sequences: otherwise it runs on one at a time."""
        return all(each.graph.name in self.costs.shared for each in self.manifest.segments)

    def _is_stacked(self, prepared: PreparedInput) -> bool:
        """Return whether a site computes sequences of this length in a pack as one batch."""
        return self._packs_all and prepared.queries <= self.costs.stacked

    def _batch_kind(self, prepared: PreparedInput, plan: Plan) -> Hashable | None:
        """Return the kind of a sequence: those of one kind run as one batch. None for one that runs by itself."""
        if prepared.continuation is not None:
            return self._step_kind(prepared, prepared.continuation, plan)
        added = prepared.added
        if (
            prepared.memory
            or isinstance(added, LongMask | LimitedMasks)
            or (plan.predictions is not None and self._predicts_by_word)
        ):  # computed rows differ from sequence to sequence
            return None
        sources = (prepared.query, prepared.key, prepared.value, prepared.tokens, prepared.memory_tokens)
        widths = tuple(None if x is None else x.shape[1:] if isinstance(x, np.ndarray) else () for x in sources)
        mask = None if added is None else (added.shape, added.tobytes())
        return prepared.queries, prepared.keys, widths, mask

    def _step_kind(self, prepared: PreparedInput, continuation: Continuation, plan: Plan) -> Hashable | None:
        """Return the kind of one query behind a prefix of any length; None for further ones, and for masks."""
        runs = [] if prepared.queries > 1 or prepared.added is not None else plan.stages
        if not runs or not self._takes_steps or any(not stages.isdisjoint(KEYS) for stages in runs):
            return None
        return "step", prepared.query is None, continuation.keeps

    @cached_property
    def _takes_steps(self) -> bool:
        """Whether single queries of several decoders' sequences run together."""
        takes = all(each.takes_steps for each in self.layers)
        return takes and source_chain(self.manifest) is None and not self._predicts_by_word

    @cached_property
    def _predicts_by_word(self) -> bool:
        """Whether a predictor reads the rows of certain tokens, which only a text has."""
        return any(predictor.rows == Predictor.ROWS_TOKENS for predictor in self.manifest.predictors)
