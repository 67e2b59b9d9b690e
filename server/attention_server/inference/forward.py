"""The forward pass of a model: the front, then its chain of segments and sites, and the head.

An encoder-decoder has two chains: `inference/encoder_decoder.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest
from attention_proto.chains import source_chain, target_chain
from attention_proto.folder import LOGITS

from attention_server.contexts.past import Continuation, Past
from attention_server.domain.messages import Tokens
from attention_server.inference.chain import LoadedChain
from attention_server.inference.encoder_decoder import EncoderDecoder
from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.fronts import POSITIONS, TYPES, Fronts, joined
from attention_server.inference.labels import Labels
from attention_server.inference.layer import KEYS, LoadedLayer, Rows, Tensors
from attention_server.inference.masks import Vectors
from attention_server.inference.pack import SiteBatch, Stages
from attention_server.inference.planner import Plan
from attention_server.inference.preprocess import PreparedInput
from attention_server.inference.reductions import LayerReductions
from attention_server.inference.walk import NO_NAMES, Names


@dataclass(frozen=True)
class Forward:
    """The forward pass of one model.

    Attributes:
        manifest: of the model.
        layers: its sites, first to last.
        graphs: its graphs by file name.
        labels: of each of its predictors.
        shared: the names of the graphs that run on the rows of several sequences.
    """

    manifest: Manifest
    layers: Sequence[LoadedLayer]
    graphs: Mapping[str, Graph]
    labels: Mapping[str, Labels]
    shared: Names = NO_NAMES

    def stages(
        self,
        batch: Sequence[PreparedInput],
        plan: Plan,
        run: Run,
        rows: Rows | None = None,
        pooling: Vectors | None = None,
        reductions: Callable[[int], LayerReductions] | None = None,
    ) -> list[Stages]:
        """Compute the stages of as many layers as the plan needs.

        Args:
            batch: sequences of one kind, or one batch.
            plan: says which stages of which layers.
            run: the computation that this is a part of.
            rows: the query rows of the last layer to compute; None for all.
            pooling: the weights of means, [P, rows]: of the last layer only the means of `output` are computed.
            reductions: the reductions of each layer of one long sequence; None for short ones.
        """
        if self._pair is not None:
            return self._pair.stages(batch, plan, run, rows, reductions)
        memory = batch[0].memory
        kept = NO_NAMES if memory is None or batch[0].continuation is not None else memory.names
        one = _site_batch(batch, self._inputs(batch, run), rows)
        one.pooling, one.reductions = pooling, reductions
        self._run([one], plan, kept, run)
        return one.stages

    def pack_stages(
        self, batches: Sequence[Sequence[PreparedInput]], plan: Plan, run: Run, rows: Sequence[Rows | None]
    ) -> list[list[Stages]]:
        """Compute the stages of sequences of any lengths in one pass; return those of each batch.

        Args:
            batches: the sequences, in batches of one kind.
            plan: says which stages of which layers.
            run: the computation that this is a part of.
            rows: of each batch the query rows of the last layer to compute; None for all.
        """
        front = self.manifest.text.front.name
        fronts: Sequence[Stages | None] = [None] * len(batches)
        if front in self.shared and batches[0][0].tokens is not None:
            fronts = self._fronts.pack(front, batches, run)
        inputs = [self._inputs(batch, run, of) for batch, of in zip(batches, fronts, strict=True)]
        made = [_site_batch(*each) for each in zip(batches, inputs, rows, strict=True)]
        self._run(made, plan, NO_NAMES, run)
        return [each.stages for each in made]

    def _run(self, batches: Sequence[SiteBatch], plan: Plan, kept: Names, run: Run) -> None:
        if any(batch.continued for batch in batches):
            self._chain.continued(batches, plan.stages, kept, run)
        else:
            self._chain.stages(batches, self._chain.walk(plan.stages, kept, NO_NAMES, False), run)

    def keep_prefix(self, tokens: Tokens, data_type: str, run: Run) -> Past:
        """Run the chain of a decoder on a text; return the keys and values of every site.

        Raises:
            InvalidRequest: a number is beyond the range of the kept format.
        """
        length = len(tokens.ids)
        kept_as = np.dtype(np.float16 if data_type == "FP16" else np.float32)
        text = PreparedInput(None, None, None, tokens, None, length, length)
        continuation = Continuation(None, keeps=True, data_type=kept_as)
        self._chain.continued([SiteBatch(self._inputs([text], run), continued=[continuation])], (), NO_NAMES, run)
        assert continuation.kept is not None  # it keeps
        continuation.kept.write_tokens(tokens)
        return continuation.kept

    def project_memory(
        self, key: Vectors | None, value: Vectors | None, tokens: Tokens | None, run: Run
    ) -> dict[str, Vectors]:
        """Project a memory's key [S, Dk] and value [S, Dv], or its tokens.

        Returns:
            K and v, each [1, S, width]; of an encoder-decoder those of every cross site, by the names of its graphs.
        """
        if self._pair is not None:
            assert tokens is not None  # checked: an encoder-decoder keeps texts alone
            return self._pair.encode(tokens, run)
        if tokens is not None:
            front = self._fronts.run(self.manifest.text.memory_front.name, [tokens], run)
            keys, values = front["key"], front.get("value")
        else:
            assert key is not None
            keys, values = key[None], None if value is None else value[None]
        tensors: Tensors = {"key": keys, "value": keys if values is None else values}
        self._chain.project(tensors, run)
        return {name: tensors[name] for name in KEYS}

    def head(self, outputs: Sequence[str], rows: Vectors, run: Run) -> list[Vectors]:
        """Run the head on rows of the output or hidden state, [N, D].

        Args:
            outputs: predictors, for their probabilities, and LOGITS; only these are computed.
            rows: [N, D].
            run: the computation that this is a part of.

        Returns:
            Each output, [N, labels].
        """
        graph = self.graphs[self.manifest.head.name]
        compute = graph.run if len(outputs) == len(graph.outputs) else graph.run_path
        return compute(outputs, {next(iter(graph.inputs)): rows}, run)  # type: ignore[return-value] # float32

    @cached_property
    def head_is_by_row(self) -> bool:
        """Whether the head gives a row the same bits beside others as alone: compared on a few rows."""
        outputs = [each.name for each in self.manifest.predictors] + [LOGITS] * bool(self.manifest.logits_dim)
        width = self.manifest.hidden_dim or self.manifest.layers[-1].output_dim
        rows = np.random.default_rng(0).standard_normal((3, width)).astype(np.float32)
        together = self.head(outputs, rows, Run())
        alone = [self.head(outputs, row[None], Run()) for row in rows]
        return all(np.array_equal(found, np.concatenate(each)) for found, *each in zip(together, *alone, strict=True))

    def warm(self, run: Run) -> None:
        """Run every graph once, so that no request waits for a first allocation."""
        text = self.manifest.text
        for front in (name for name in (text.front.name, text.memory_front.name) if name):
            self._fronts.run(front, [None], run)
        if self._pair is not None:
            self._pair.warm(run)
        else:
            self._warm_chain(run)
        if self.manifest.predictors:
            width = self.manifest.hidden_dim or self.manifest.layers[-1].output_dim
            for predictor in self.manifest.predictors:
                self.head((predictor.name,), np.zeros((1, width), np.float32), run)

    def _warm_chain(self, run: Run) -> None:
        first = self.layers[0].about
        query = first.query_dim or 8
        widths = {"query": query, "key": first.key_dim or query, "value": first.value_dim or first.key_dim or query}
        tensors: Tensors = {name: np.ones((1, 4, width), np.float32) for name, width in widths.items()}
        self._fronts.add_positions(tensors, 4, [None])
        if first.HasField("pool"):
            self.layers[0].pool(tensors, np.ones((1, 4), np.float32), run)
        self._chain.warm(tensors, run)

    @cached_property
    def _fronts(self) -> Fronts:
        return Fronts(self.manifest, self.graphs)

    @cached_property
    def _pair(self) -> EncoderDecoder | None:
        """The two chains of an encoder-decoder; None of a model of one."""
        source, target = source_chain(self.manifest), target_chain(self.manifest)
        if source is None:
            return None
        chains = [
            LoadedChain(self.layers[each.begin : each.begin + len(each.layers)], each.segments, self.graphs)
            for each in (source, target)
        ]
        return EncoderDecoder(self._fronts, *chains)

    @cached_property
    def _chain(self) -> LoadedChain:
        return LoadedChain(self.layers, self.manifest.segments, self.graphs, self.shared)

    def _inputs(self, batch: Sequence[PreparedInput], run: Run, front: Stages | None = None) -> Tensors:
        """Return query, key and value, as sent or from a front; and k and v of a memory, or without segments.

        Key defaults to query, value to key. `front` has the outputs of a front that ran in the pass; None to run it.
        """
        query, key, value = batch[0].query, batch[0].key, batch[0].value
        if len(batch) > 1:
            query, key, value = [joined([getattr(each, name) for each in batch]) for name in ("query", "key", "value")]
        texts = [each.tokens for each in batch]
        if texts[0] is not None:
            if front is None:
                front = self._fronts.run(self.manifest.text.front.name, texts, run, [each.first for each in batch])
            query = front["query"]
            if key is None:
                key, value = front.get("key"), front.get("value") if value is None else value
        if batch[0].memory_tokens is not None:
            front = self._fronts.run(self.manifest.text.memory_front.name, [each.memory_tokens for each in batch], run)
            key, value = front["key"], front.get("value")
        assert query is not None
        key = query if key is None else key
        tensors: Tensors = {"query": query, "key": key, "value": key if value is None else value}
        if (memory := batch[0].memory) is not None and batch[0].continuation is None:
            tensors |= memory.vectors()
        elif not self._chain.segments:
            tensors["k"], tensors["v"] = tensors["key"], tensors["value"]
        if not self._chain.reads.isdisjoint((POSITIONS, TYPES)):
            self._fronts.add_positions(
                tensors,
                batch[0].queries,
                texts if texts[0] is not None else [None] * len(query),
                [each.first for each in batch],
            )
        return tensors


def _site_batch(batch: Sequence[PreparedInput], tensors: Tensors, rows: Rows | None) -> SiteBatch:
    continued = [each.continuation for each in batch if each.continuation is not None]
    return SiteBatch(tensors, batch[0].added, rows, continued=continued)
