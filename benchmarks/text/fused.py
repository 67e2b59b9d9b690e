"""MiniLM from texts in process, as one graph of the whole model: what every peer serves.

Peers import this file in separate environments, so it depends on NumPy, onnxruntime and tokenizers alone.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAIRS = ("2.3", "4.1")  # layer.head
SITES, HEADS = (2, 4), (3, 1)
TOP = 8
GRAPHS: dict[str, dict[str, Any]] = {  # the arguments of `minilm.join`
    "plain": {},
    "masked": {"masked": True},
    "explained": {"explained": SITES},
}

Vectors = NDArray[np.float32]
Answer = dict[str, NDArray[Any]]  # `hidden` [D]; `values` and `indices` of the top weights of each pair, [P, T, 8]


class Fused:
    """The graphs and the tokenizer.

    Args:
        folder: of `plain.onnx`, `masked.onnx`, `explained.onnx` and `tokenizer.json`.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 # load generators have no tokenizers

        self._folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # the checkpoint\'s own is at 128 tokens
        self._graph = functools.cache(self._open)

    def answer(self, text: str, *, top: bool = False) -> Answer:
        """Return the mean of the last hidden states of one text, and the top weights if asked."""
        ids = np.array([self._tokenizer.encode(text).ids])
        hidden, *weights = self._graph("explained" if top else "plain").run(None, _feeds(ids))
        pooled = {"hidden": hidden[0].mean(0)}
        if not top:
            return pooled
        return pooled | top_weights(np.stack([each[0, head] for each, head in zip(weights, HEADS, strict=True)]))

    def answer_padded(self, texts: Sequence[str]) -> list[Answer]:
        """Return the means of several texts by one run, padded to the longest and masked if lengths differ."""
        tokens = [each.ids for each in self._tokenizer.encode_batch_fast(list(texts))]
        lengths = [len(each) for each in tokens]
        longest = max(lengths)
        if min(lengths) == longest:
            (hidden,) = self._graph("plain").run(None, _feeds(np.array(tokens)))
            return [{"hidden": each} for each in hidden.mean(1)]
        ids = np.zeros((len(tokens), longest), np.int64)
        mask = np.full((len(tokens), 1, longest, longest), -np.inf, np.float32)
        for row, (each, length) in enumerate(zip(tokens, lengths, strict=True)):
            ids[row, :length] = each
            mask[row, :, :, :length] = 0
        (hidden,) = self._graph("masked").run(None, _feeds(ids) | {"mask": mask})
        return [{"hidden": each[:length].mean(0)} for each, length in zip(hidden, lengths, strict=True)]

    def length(self, text: str) -> int:
        """Return the number of tokens of a text, special tokens included."""
        return len(self._tokenizer.encode(text).ids)

    def _open(self, name: str) -> Any:
        import onnxruntime as ort  # noqa: PLC0415

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return ort.InferenceSession(str(self._folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])


def top_weights(weights: Vectors) -> Answer:
    """Return the largest weights of each row of [P, T, S] and their keys, each [P, T, min(8, S)]."""
    count = min(TOP, weights.shape[-1])
    indices = np.argpartition(-weights, count - 1, axis=-1)[..., :count]
    values = np.take_along_axis(weights, indices, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return {
        "values": np.take_along_axis(values, order, -1),
        "indices": np.take_along_axis(indices, order, -1).astype(np.int32),
    }


def _feeds(ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    positions = np.arange(ids.shape[1])[None].repeat(len(ids), 0)
    return {"tokens": ids, "position_ids": positions, "token_type_ids": np.zeros_like(ids)}
