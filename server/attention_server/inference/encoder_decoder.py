"""The forward pass of an encoder-decoder: a chain of the source, and one of the target that attends to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attention_server.domain.messages import Tokens
from attention_server.inference.chain import LoadedChain
from attention_server.inference.engine.protocol import Run
from attention_server.inference.fronts import POSITIONS, TYPES, Fronts, joined
from attention_server.inference.layer import Rows, Tensors
from attention_server.inference.masks import Vectors
from attention_server.inference.pack import SiteBatch, Stages
from attention_server.inference.planner import Plan
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.reductions import LayerReductions
from attention_server.inference.walk import NO_NAMES, Names

WARM_LENGTH = 4


@dataclass(frozen=True)
class EncoderDecoder:
    """Two chains. The source's last segment gives the keys and values of the target's cross sites.

    Attributes:
        fronts: of the source and of the target.
        source, target: the chains.
    """

    fronts: Fronts
    source: LoadedChain
    target: LoadedChain

    def stages(
        self,
        batch: Sequence[PreparedInput],
        plan: Plan,
        run: Run,
        rows: Rows | None,
        reductions: Callable[[int], LayerReductions] | None = None,
    ) -> list[Stages]:
        """Compute the stages wanted, of the source's sites first; a chain without a wanted stage does not run.

        Args:
            batch: sequences of one kind.
            plan: says which stages of which sites.
            run: the computation that this is a part of.
            rows: the query rows of the plan's last site to compute; None for all.
            reductions: the reductions of each site of one long sequence; None for short ones.
        """
        first, memory = batch[0], batch[0].memory
        count = len(self.source.layers)
        of_source, of_target = plan.stages[:count], plan.stages[count:]
        kept = NO_NAMES if memory is None else memory.names
        of_sites = None if reductions is None else lambda place: reductions(count + place)
        if first.continuation is not None and memory is not None:
            tensors = memory.vectors() | self._target_inputs(batch, run)
            target = SiteBatch(tensors, first.added, rows, continued=[first.continuation], reductions=of_sites)
            self.target.continued([target], of_target, kept, run)
            return [{} for _ in of_source] + target.stages
        walk = self.target.walk(of_target, kept, NO_NAMES, False) if of_target else None
        from_source = NO_NAMES if walk is None else walk.takes & self._memory_names
        stages: list[Stages] = [{}] * len(of_source)
        found: Tensors = {} if memory is None else dict(memory.vectors())
        if from_source or any(of_source):
            tensors = self._source_inputs(batch, run)
            source = SiteBatch(tensors, rows=rows if walk is None else None, reductions=reductions)
            self.source.stages([source], self.source.walk(of_source, NO_NAMES, from_source, False), run)
            stages = source.stages
            found = {name: tensors[name] for name in from_source}
        if walk is None:
            return stages
        target = SiteBatch(found | self._target_inputs(batch, run), first.added, rows, reductions=of_sites)
        self.target.stages([target], walk, run)
        return stages + target.stages

    def encode(self, tokens: Tokens, run: Run) -> dict[str, Vectors]:
        """Run the source's chain; return the keys and values of every cross site, each [1, S, width]."""
        tensors = self._inputs(self.source, self.fronts.manifest.text.memory_front.name, [tokens], None, run)
        nothing = (NO_NAMES,) * len(self.source.layers)
        walk = self.source.walk(nothing, NO_NAMES, self._memory_names, False)
        self.source.stages([SiteBatch(tensors)], walk, run)
        return {name: tensors[name] for name in sorted(self._memory_names)}

    def warm(self, run: Run) -> None:
        """Run every graph of both chains once."""
        tensors: Tensors = {}
        for chain in (self.source, self.target):
            width = chain.layers[0].about.query_dim
            tensors["query"] = np.ones((1, WARM_LENGTH, width), np.float32)
            self.fronts.add_positions(tensors, WARM_LENGTH, [None])
            chain.warm(tensors, run)

    @cached_property
    def _memory_names(self) -> Names:
        """The names of the tensors that the source gives to the cross sites."""
        return frozenset(name for layer in self.target.layers for name in layer.kept or ())

    def _source_inputs(self, batch: Sequence[PreparedInput], run: Run) -> Tensors:
        texts = [each.memory_tokens for each in batch]
        vectors = joined([each.key for each in batch])
        return self._inputs(self.source, self.fronts.manifest.text.memory_front.name, texts, vectors, run)

    def _target_inputs(self, batch: Sequence[PreparedInput], run: Run) -> Tensors:
        texts = [each.tokens for each in batch]
        vectors = joined([each.query for each in batch])
        front = self.fronts.manifest.text.front.name
        return self._inputs(self.target, front, texts, vectors, run, [batch[0].first])

    def _inputs(
        self,
        chain: LoadedChain,
        front: str,
        texts: Sequence[Tokens | None],
        vectors: Vectors | None,
        run: Run,
        firsts: Sequence[int] = (),
    ) -> Tensors:
        """Return the inputs of a chain: the vectors of texts, or those given, and positions from `firsts` or 0."""
        query = self.fronts.run(front, texts, run, firsts)["query"] if vectors is None else vectors
        tensors: Tensors = {"query": query}
        if not chain.reads.isdisjoint((POSITIONS, TYPES)):
            count, length = tensors["query"].shape[:2]
            self.fronts.add_positions(tensors, length, texts if vectors is None else [None] * count, firsts)
        return tensors
