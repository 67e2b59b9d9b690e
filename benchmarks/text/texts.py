"""The texts of every load, and the right answers to the first of each, computed by `transformers` in eager mode.

Load generators read both from files, and depend on NumPy alone.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.text.fused import HEADS, SITES, TOP, Answer, top_weights

COUNT = 256  # distinct texts of a load
CHECKED = 16  # compared answers of each load
SPECIAL = 2  # tokens around a text


def _between(least: int, most: int) -> Callable[[np.random.Generator], Any]:
    return lambda rng: rng.integers(least, most + 1, COUNT)


# Tokens of each text, special tokens included.
LENGTHS: dict[str, Callable[[np.random.Generator], Any]] = {
    "4": _between(4, 4),
    "12": _between(12, 12),
    "8-24": _between(8, 24),
    "sentences": lambda rng: np.clip(rng.lognormal(np.log(32), 0.5, COUNT), 8, 128).astype(int),
    "8-256": lambda rng: np.exp(rng.uniform(np.log(8), np.log(256), COUNT)).astype(int),
}


def write(path: Path, source: Path) -> None:
    """Write `texts.json` and `right.npz` into a folder, of a checkpoint's folder."""
    import torch  # noqa: PLC0415 # takes seconds
    from tokenizers import Tokenizer  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()  # the checkpoint\'s own is at 128 tokens
    rng = np.random.default_rng(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    drawn = {
        name: [" ".join(rng.choice(words, count - SPECIAL)) for count in lengths(rng)]
        for name, lengths in LENGTHS.items()
    }
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    right: dict[str, Any] = {}
    for name, texts in drawn.items():
        for number, text in enumerate(texts[:CHECKED]):
            with torch.no_grad():
                found = model(torch.tensor([tokenizer.encode(text).ids]), output_attentions=True)
            right[f"{name}/hidden/{number}"] = found.last_hidden_state[0].mean(0).numpy()
            pairs = [found.attentions[site][0, head].numpy() for site, head in zip(SITES, HEADS, strict=True)]
            right[f"{name}/weights/{number}"] = np.stack(pairs)
    np.savez(path / "right.npz", **right)
    (path / "texts.json").write_text(json.dumps(drawn))


class Texts(list[str]):
    """The texts of one load, with the right answers to the first.

    Args:
        folder: of the files that `write` wrote.
        lengths: a key of `LENGTHS`.
    """

    def __init__(self, folder: Path, lengths: str) -> None:
        super().__init__(json.loads((folder / "texts.json").read_text())[lengths])
        self._lengths = lengths
        self._right = np.load(folder / "right.npz")

    def check(self, number: int, answer: Answer, *, top: bool = False) -> None:
        """Compare an answer with the right one.

        Raises:
            AssertionError: the answer is wrong, or lacks the top weights that were asked for.
        """
        right = self._right[f"{self._lengths}/hidden/{number}"]
        np.testing.assert_allclose(answer["hidden"], right, atol=1e-4, err_msg=f"hidden of text {number}")
        if not top:
            return
        weights = self._right[f"{self._lengths}/weights/{number}"]
        values = top_weights(weights)["values"]
        assert values.shape[-1] == min(TOP, weights.shape[-1])
        there = np.take_along_axis(weights, answer["indices"].astype(np.int64), -1)
        for found in (answer["values"], there):
            np.testing.assert_allclose(found, values, atol=1e-4, err_msg=f"top weights of text {number}")
