"""The probes of a model's graphs: the inputs of each, and the rows and sequences that have to be independent."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Segment
from attention_proto.chains import Chain, kept_names, source_chain, target_chain
from attention_proto.folder import TRANSFORMER, tensor_name
from numpy.typing import NDArray

from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.independence import FIRST, LAST, ROW_COUNT, SEQUENCES, Compute, Probe
from attention_server.inference.layer import LoadedLayer, Tensors
from attention_server.inference.tokenizer import TextTokenizer
from attention_server.inference.validation import attends_to_itself

KEYS = 7  # of a memory: a prime that differs from the number of queries
LONG = 257  # rows: as many as a sequence has that is cut into blocks for idle slots, and a prime
TOKENS = 5  # of a text that a block's front reads
ANY_WIDTH = 8  # of a head, where a block takes any width
LOUD = 4.0  # the factor of one row, which shows a scale that is shared by all rows
MAX_SPECIAL = ROW_COUNT // 2  # special tokens among the rows of a probe


@dataclass(frozen=True)
class ModelProbes:
    """The probes of one model.

    Attributes:
        manifest: of the model.
        layers: its sites.
        graphs: its graphs by file name; checked against the manifest.
        reader, memory_reader: its tokenizers; None for a model without text, or without memory text.
    """

    manifest: Manifest
    layers: Sequence[LoadedLayer]
    graphs: Mapping[str, Graph]
    reader: TextTokenizer | None
    memory_reader: TextTokenizer | None

    def each(self) -> Iterator[Probe]:
        """Yield the probe of each graph, once for each file."""
        yield from self._front_probes()
        source, target = source_chain(self.manifest), target_chain(self.manifest)
        if source is not None:
            of_source = yield from self._probe_chain(source, self.memory_reader, {})
            kept = {name for names in kept_names(self.manifest) if names for name in names}
            # Fewer keys than queries, which shows an axis taken for another.
            of_source = {name: of_source[name][:, :KEYS] for name in kept}
            yield from self._probe_chain(target, self.reader, of_source)
        else:
            tensors = yield from self._probe_chain(target, self.reader, {})
        last = self.manifest.layers[-1]
        if last.HasField("pool"):
            inputs = {name: tensors[name] for name in ("query", "key", "value")}
            yield Probe(last.pool.name, _each_row(_compute(self.graphs[last.pool.name])), inputs, ("query",))
        if self.manifest.predictors:
            yield self._head_probe()

    def _probe_chain(
        self, chain: Chain, reader: TextTokenizer | None, of_source: Tensors
    ) -> Generator[Probe, None, Tensors]:
        """Yield the probes of a chain; return its tensors."""
        tensors = self._draw(chain, reader, SEQUENCES, ROW_COUNT, KEYS) | of_source
        yield from self._chain_probes(chain, tensors, Probe, is_long=False)
        # One of many rows alone shows a dependence on the position that a short sequence hides.
        long = partial(Probe, by_sequence=False, blocks=(FIRST, LAST))
        yield from self._chain_probes(chain, self._draw(chain, reader, 1, LONG, LONG), long, is_long=True)
        return tensors

    def _chain_probes(
        self, chain: Chain, tensors: Tensors, make: Callable[..., Probe], *, is_long: bool
    ) -> Iterator[Probe]:
        """Yield the probes of segments and sites, along one computation: a long one of the first site alone."""
        seen: set[str] = set()
        segments, layers = chain.segments, self.layers[chain.begin : chain.begin + len(chain.layers)]
        if not segments:
            tensors |= {"k": tensors["key"], "v": tensors["value"]}
        for index in range(max(len(layers), len(segments))):
            if index < len(segments):
                yield from self._segment_probe(segments[index], tensors, seen, make)
            if index < len(layers):
                if layers[index].kept is not None and is_long:
                    return
                layers[index].read_keys(tensors)
                yield from _site_probes(layers[index], tensors, seen, make, chain.max_tokens)
                if is_long:
                    return
                layers[index].stages(tensors, None, frozenset(), layers[index].gives, Run())

    def _segment_probe(
        self, segment: Segment, tensors: Tensors, seen: set[str], make: Callable[..., Probe]
    ) -> Iterator[Probe]:
        """Yield the probe of a segment not seen before, and write its outputs."""
        compute = _compute(self.graphs[segment.graph.name])
        inputs = {name: tensors[name] for name in self.graphs[segment.graph.name].inputs}
        if segment.graph.name not in seen:
            seen.add(segment.graph.name)
            yield make(segment.graph.name, compute, inputs, () if segment.rows_dependent else tuple(inputs))
        tensors.update({tensor_name(name): found for name, found in compute(inputs).items()})

    def _front_probes(self) -> Iterator[Probe]:
        """Yield the probes of fronts: by sequence, for a row may depend on all tokens; by row where it does not."""
        text = self.manifest.text
        fronts = (
            (text.front.name, self.reader, text.max_tokens),
            (
                text.memory_front.name,
                self.memory_reader,
                text.max_memory_tokens,
            ),
        )
        for name, reader, max_tokens in fronts:
            if name and reader is not None:
                length = ROW_COUNT if self._is_transformer else min(TOKENS, max_tokens or TOKENS)
                tensors = self._text(reader, SEQUENCES, length, max_tokens)
                inputs = {each: tensors[each] for each in self.graphs[name].inputs}
                by_row = self._is_transformer and not self.manifest.front_rows_dependent
                yield Probe(name, _compute(self.graphs[name]), inputs, tuple(inputs) if by_row else ())

    def _head_probe(self) -> Probe:
        graph = self.graphs[self.manifest.head.name]
        (name,) = graph.inputs
        width = self.manifest.hidden_dim if self._is_transformer else self.manifest.layers[-1].output_dim
        rows = np.random.default_rng(0).standard_normal((ROW_COUNT, width), np.float32)
        return Probe(self.manifest.head.name, _compute(graph), {name: rows}, (name,), by_sequence=False)

    @property
    def _is_transformer(self) -> bool:
        return self.manifest.block == TRANSFORMER

    def _draw(self, chain: Chain, reader: TextTokenizer | None, sequences: int, queries: int, keys: int) -> Tensors:
        """Draw query, key and value, positions and token types of sequences; a transformer's from a text."""
        rng = np.random.default_rng(0)
        query, key, value = _draw_vectors(chain.layers[0], rng, sequences, queries, keys)
        tensors: Tensors = {"query": query, "key": key, "value": value}
        if attends_to_itself(self.manifest):
            tensors = dict.fromkeys(tensors, query)
        if self._is_transformer and reader is not None:
            tensors |= self._text(reader, sequences, queries, chain.max_tokens)
            graph = self.graphs[chain.front]
            tensors |= _compute(graph)({name: tensors[name] for name in graph.inputs})
        elif self._is_transformer:
            tensors |= self._positions(sequences, queries, chain.max_tokens)
        return tensors

    def _text(self, reader: TextTokenizer, sequences: int, length: int, max_tokens: int) -> Tensors:
        """Draw tokens, special ones among them in a transformer, at positions up to the greatest."""
        rng = np.random.default_rng(0)
        tokens = rng.choice(np.array(reader.ids, np.int64), (sequences, length))
        if self._is_transformer:
            special = reader.special_ids[:MAX_SPECIAL]
            tokens[:, : len(special)] = special
            tokens[0] = rng.permutation(tokens[0])
            tokens[-1, -1] = reader.size - 1  # the manifest's number of vectors is right
        return {"tokens": tokens, **self._positions(sequences, length, max_tokens)}

    def _positions(self, sequences: int, length: int, max_tokens: int) -> Tensors:
        """Return positions from the first to the greatest, and token types of zero, each INT64 [B, T]."""
        positions = _spread(length, max_tokens) + self.manifest.text.position_base
        return {
            "position_ids": np.stack([positions] * sequences),
            "token_type_ids": np.zeros((sequences, length), np.int64),
        }


def _site_probes(
    layer: LoadedLayer, tensors: Tensors, seen: set[str], make: Callable[..., Probe], max_tokens: int
) -> Iterator[Probe]:
    """Yield the probes of a site's graphs not seen before: each variant of `attend`, and the bias.

    The positions of a bias go up to the last one of the longest text.
    """
    query = layer.query
    sequences, queries, keys = *tensors[query].shape[:2], tensors["k"].shape[1]
    mask = _draw_mask(sequences, queries, keys)
    for attend in layer.about.attend:
        name = attend.file.name
        if name in layer.graphs and name not in seen:
            seen.add(name)
            inputs = {each: mask if each == "mask" else tensors[each] for each in layer.graphs[name].inputs}
            rows = tuple(each for each in (query, "mask") if each in inputs)
            yield make(name, _compute(layer.graphs[name]), inputs, rows)
    bias = layer.about.bias.name
    if bias and bias not in seen:
        seen.add(bias)
        positions = {
            "query_positions": _spread(queries, max_tokens),
            "key_positions": _spread(keys, max_tokens),
        }
        inputs = {each: (tensors | positions)[each] for each in layer.graphs[bias].inputs}
        rows = tuple(each for each in ("query_positions", "q") if each in inputs)
        has_sequences = make is Probe and "q" in inputs
        yield make(bias, _compute(layer.graphs[bias]), inputs, rows, by_sequence=has_sequences)


def _spread(length: int, max_tokens: int) -> NDArray[np.int64]:
    """Return so many positions from 0 to the last one of the longest text; of a model without a limit, the first."""
    return np.linspace(0, (max_tokens or length) - 1, length).astype(np.int64)


def _compute(graph: Graph) -> Compute:
    names = list(graph.outputs)
    return lambda inputs: dict(zip(names, graph.run(names, inputs, Run()), strict=True))


def _each_row(pool: Compute) -> Compute:
    """Return the computation of rows by a graph `pool`, of which each mean takes one row whole."""
    return lambda inputs: pool({**inputs, "pool": np.eye(inputs["query"].shape[-2], dtype=np.float32)})


def _draw_vectors(
    layer: Layer, rng: np.random.Generator, sequences: int, queries: int, keys: int
) -> list[NDArray[np.float32]]:
    """Draw query, key and value, [sequences, queries or keys, width], each with one loud row."""
    query = layer.query_dim or ANY_WIDTH * layer.heads
    key = layer.key_dim or query // layer.heads * layer.key_value_heads
    drawn = []
    for length, width in ((queries, query), (keys, key), (keys, layer.value_dim or key)):
        vectors = rng.standard_normal((sequences, length, width), np.float32)
        vectors[0, 0] *= np.float32(LOUD)
        drawn.append(vectors)
    return drawn


def _draw_mask(sequences: int, queries: int, keys: int) -> NDArray[np.float32]:
    """Draw biases of which some hide, [sequences, 1, queries, keys]; each query sees the first key."""
    rng, shape = np.random.default_rng(1), (sequences, 1, queries, keys)
    mask = np.where(rng.random(shape) < 0.3, np.float32(-np.inf), rng.standard_normal(shape, np.float32))
    mask[..., 0] = 0
    return mask
