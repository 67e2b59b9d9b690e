"""The block that every server serves, and the sequences of every load.

The block runs as in the server: the graphs of `attention-export block`, one thread a run, padding on request only.
Peers import this file in separate environments, so it depends on NumPy and onnxruntime alone.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEADS = 384, 12
MEMORY_LENGTH = 1024
COUNT = 256  # distinct sequences of a load

Vectors = NDArray[np.float32]


class Block:
    """An exported block in process.

    Args:
        folder: a version's folder in a repository of models.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._graph = functools.cache(self._open)

    def project(self, memory: Vectors) -> tuple[Vectors, Vectors]:
        """[B, S, D] -> k and v, both [B, S, D]."""
        k, v = self._graph("project").run(["k", "v"], {"key": memory, "value": memory})
        return k, v

    def attend(self, x: Vectors) -> Vectors:
        """[B, T, D] -> output, [B, T, D]: sequences of one length, without a mask."""
        return self.attend_to(x, *self.project(x))

    def attend_to(self, query: Vectors, k: Vectors, v: Vectors) -> Vectors:
        """Queries [B, T, D] over k and v [B, S, D] -> output, [B, T, D]."""
        output: Vectors = self._graph("attend").run(["output"], {"query": query, "k": k, "v": v})[0]
        return output

    def attend_padded(self, sequences: Sequence[Vectors]) -> list[Vectors]:
        """Attend over sequences [T, D] in one run, padded to the longest and masked if lengths differ."""
        lengths = [len(sequence) for sequence in sequences]
        longest = max(lengths)
        if min(lengths) == longest:
            return list(self.attend(np.stack(sequences)))
        x = np.zeros((len(sequences), longest, WIDTH), np.float32)
        mask = np.full((len(sequences), 1, longest, longest), -np.inf, np.float32)
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            x[row, :length] = sequence
            mask[row, :, :, :length] = 0
        k, v = self.project(x)
        padded = self._graph("attend-masked").run(["output"], {"query": x, "k": k, "v": v, "mask": mask})[0]
        return [output[:length] for output, length in zip(padded, lengths, strict=True)]

    def explain(self, x: Vectors) -> tuple[Vectors, Vectors]:
        """[B, T, D] -> output [B, T, D] and weights [B, H, T, T]."""
        k, v = self.project(x)
        output, weights = self._graph("explain").run(["output", "weights"], {"query": x, "k": k, "v": v})
        return output, weights

    def _open(self, name: str) -> Any:
        import onnxruntime as ort  # noqa: PLC0415 # load generators have no onnxruntime

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        path = str(self._folder / f"{name}.onnx")
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def sequences(lengths: str) -> list[Vectors]:
    """Draw a load's sequences, each [T, D].

    Args:
        lengths: a number of positions; or `mixed`, lognormal (3.6, 0.7) within 4 to 256.
    """
    rng = np.random.default_rng(0)
    if lengths == "mixed":
        counts = np.clip(rng.lognormal(3.6, 0.7, COUNT), 4, 256).astype(int)
    else:
        counts = np.full(COUNT, int(lengths))
    return [rng.standard_normal((int(count), WIDTH), np.float32) for count in counts]


def memory() -> Vectors:
    """Draw the memory of a decoder's steps, [S, D]."""
    return np.random.default_rng(1).standard_normal((MEMORY_LENGTH, WIDTH), np.float32)
