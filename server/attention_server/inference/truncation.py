"""Which tokens of a text that is too long are kept: special tokens stay, as in the tokenizers library."""

from collections.abc import Sequence

import numpy as np
from attention_proto.text import Truncate
from numpy.typing import NDArray


def kept_tokens(texts: Sequence[int | None], most: int, side: Truncate) -> NDArray[np.intp]:
    """Return the positions of the tokens that are kept, ascending.

    Args:
        texts: for each token the index of its text, 0 or 1 in a pair; None for a special token put beside.
        most: the number of tokens to keep; special ones are kept even where there are more.
        side: where tokens are dropped.
    """
    belongs = np.array([-1 if text is None else text for text in texts])
    found = [np.flatnonzero(belongs == text) for text in (-1, 0, 1)]
    special, *parts = found
    lengths = shortened(len(parts[0]), len(parts[1]), max(0, most - len(special)))
    for part, length in zip(parts, lengths, strict=True):
        special = np.concatenate([special, part[:length] if side == "right" else part[len(part) - length :]])
    return np.sort(special)


def shortened(first: int, second: int, most: int) -> tuple[int, int]:
    """Return the lengths of two texts that have at most so many tokens together: the longer one is shortened first.

    `truncate_encodings` of the tokenizers library with its strategy `longest_first`, by which `transformers` truncates.
    """
    if first + second <= most:
        return first, second
    shorter = min(first, second)
    longer = shorter if shorter > most else max(shorter, most - shorter)
    if shorter + longer > most:
        shorter = most // 2
        longer = most - shorter
    return (longer, shorter) if first > second else (shorter, longer)
