"""Rows as tensors, padded for training batches of mixed lengths; the service never pads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attention_export.own_data.rows import Row, Vectors, Words

NO_ANSWER = -100  # the label that cross_entropy ignores


@dataclass(frozen=True)
class Padded:
    """Sequences of several lengths: rows (N, T) of tokens or (N, T, D) of vectors, and lengths (N,)."""

    rows: Tensor
    lengths: Tensor

    def take(self, chosen: Tensor) -> "Padded":
        """Return the chosen sequences, padded to the longest one."""
        lengths = self.lengths[chosen]
        return Padded(self.rows[chosen, : int(lengths.max())], lengths)

    def valid(self) -> Tensor:
        """Return the mask of positions that are not padding, BOOL (N, T)."""
        return torch.arange(self.rows.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True)
class Examples:
    """N sequences with labels.

    Attributes:
        sequence: the query sequences.
        memory: the key sequences; None for self-attention.
        answers: the classes of P labels, (N, P), or (N, P, T) for a label at each position.
    """

    sequence: Padded
    memory: Padded | None
    answers: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.answers)

    def take(self, chosen: Tensor) -> "Examples":
        """Return the chosen sequences."""
        sequence = self.sequence.take(chosen)
        answers = self.answers[chosen]
        return Examples(
            sequence,
            self.memory.take(chosen) if self.memory else None,
            answers if answers.dim() == 2 else answers[..., : sequence.rows.shape[1]],
        )

    def batches(self, size: int) -> Iterator["Examples"]:
        """Yield all sequences in order, in batches."""
        return map(self.take, torch.arange(len(self)).split(size))


def make_examples(
    rows: Sequence[Row], tokenizer: Tokenizer | None, classes: Mapping[str, Sequence[str]], *, tagged: bool
) -> Examples:
    """Turn rows into tensors.

    Args:
        rows: at least one.
        tokenizer: the vocabulary; None for vectors.
        classes: label name -> classes, in the head's order.
        tagged: whether there is a label for each position.
    """
    indices = [{label: index for index, label in enumerate(labels)} for labels in classes.values()]
    answers = [
        torch.tensor(
            [[index[label] for label in row.labels[name]] for name, index in zip(classes, indices, strict=True)]
        )
        for row in rows
    ]  # each (P, 1) or (P, T)
    padded = pad_sequence([answer.T for answer in answers], batch_first=True, padding_value=NO_ANSWER).mT  # (N, P, ..)
    memories = [row.memory for row in rows if row.memory is not None]
    read = _reader(tokenizer)
    return Examples(
        _pad([read(row.sequence) for row in rows]),
        _pad([read(memory) for memory in memories]) if memories else None,
        padded if tagged else padded.squeeze(-1),
    )


def _reader(tokenizer: Tokenizer | None) -> Callable[[Words | Vectors], NDArray[np.int64] | Vectors]:
    ids = tokenizer.get_vocab() if tokenizer else {}

    def read(sequence: Words | Vectors) -> NDArray[np.int64] | Vectors:
        return np.array([ids.get(word, 0) for word in sequence]) if isinstance(sequence, tuple) else sequence

    return read


def _pad(sequences: Sequence[NDArray[np.int64] | Vectors]) -> Padded:
    tensors = [torch.from_numpy(sequence) for sequence in sequences]
    return Padded(pad_sequence(tensors, batch_first=True), torch.tensor([len(tensor) for tensor in tensors]))
