"""The fronts of a model: from tokens to the vectors that the first segment takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Manifest

from attention_server.domain.messages import Tokens
from attention_server.inference.engine.protocol import Graph, Run
from attention_server.inference.layer import Tensors
from attention_server.inference.masks import Vectors
from attention_server.inference.pack import Stages, split_rows
from attention_server.inference.preprocess import PreparedInput

POSITIONS, TYPES = "position_ids", "token_type_ids"  # inputs that are made of the text


@dataclass(frozen=True)
class Fronts:
    """The graphs that make vectors of tokens.

    Attributes:
        manifest: of the model.
        graphs: its graphs by file name.
    """

    manifest: Manifest
    graphs: Mapping[str, Graph]

    def run(self, name: str, texts: Sequence[Tokens | None], run: Run, firsts: Sequence[int] = ()) -> Stages:
        """Run a front on texts of one length, None for one token of any kind; return its outputs by name.

        `firsts` are the positions of the first tokens; empty for 0.
        """
        graph = self.graphs[name]
        tensors: Tensors = {"tokens": np.array([np.zeros(1, np.int64) if text is None else text.ids for text in texts])}
        if len(graph.inputs) > 1:
            self.add_positions(tensors, tensors["tokens"].shape[1], texts, firsts)
        feeds = {each: tensors[each] for each in graph.inputs}
        return dict(zip(graph.outputs, graph.run(list(graph.outputs), feeds, run), strict=True))  # type: ignore[arg-type]

    def pack(self, name: str, batches: Sequence[Sequence[PreparedInput]], run: Run) -> list[Stages]:
        """Run a front on texts of any lengths at once; return its outputs of each batch by name."""
        given = [(each.tokens, each.first) for batch in batches for each in batch]
        base = self.manifest.text.position_base
        texts = [text for text, _ in given if text is not None]
        tensors: Tensors = {
            "tokens": np.concatenate([text.ids for text in texts])[None],
            TYPES: np.concatenate([text.types for text in texts])[None],
            POSITIONS: np.concatenate(
                [np.arange(base + first, base + first + len(text.ids)) for text, first in given if text is not None]
            )[None],
        }
        graph = self.graphs[name]
        found = graph.run(list(graph.outputs), {each: tensors[each] for each in graph.inputs}, run)
        shapes = [(len(batch), batch[0].queries) for batch in batches]
        parts = zip(*[split_rows(array, shapes) for array in found], strict=True)
        return [dict(zip(graph.outputs, part, strict=True)) for part in parts]

    def add_positions(
        self, tensors: Tensors, length: int, texts: Sequence[Tokens | None], firsts: Sequence[int] = ()
    ) -> None:
        """Add the inputs `POSITIONS` and `TYPES` of a front, INT64 [B, T], for a batch of sequences of one length.

        Args:
            tensors: receives both.
            length: T, of each sequence.
            texts: the tokens of each sequence, which have the types; None for vectors, with types of 0.
            firsts: the position of the first row of each sequence; by default 0. The manifest's base is added.
        """
        base = self.manifest.text.position_base
        zeros = np.zeros(length, np.int64)
        # Not by np.stack, which is Python of many calls.
        own = np.arange(base, base + length, dtype=np.int64)
        tensors[POSITIONS] = np.array([own + each for each in firsts] if any(firsts) else [own] * len(texts))
        tensors[TYPES] = np.array([zeros if text is None else text.types for text in texts])


def joined(vectors: Sequence[Vectors | None]) -> Vectors | None:
    """Join arrays along the first dimension; return None where there are none."""
    if len(vectors) == 1 or vectors[0] is None:
        return vectors[0]
    return np.concatenate(vectors)  # type: ignore[arg-type] # all are there, or none
