"""The reference: right answers, computed in process once, for the first sequences of each load."""

from pathlib import Path

import numpy as np

from benchmarks.serving.block import Block, memory, sequences

CHECKED = 16  # compared sequences of each load
TOP = 8


def write(path: Path, models: Path) -> None:
    """Write the right answers to the first sequences of every load, as arrays named LENGTHS/OUTPUT/NUMBER."""
    block, cross = Block(models / "block/1"), Block(models / "cross/1")
    k, v = cross.project(memory()[None])
    right = {}
    for lengths in ("4", "32", "128", "512", "mixed"):
        for i, x in enumerate(sequences(lengths)[:CHECKED]):
            right[f"{lengths}/output/{i}"] = block.attend(x[None])[0]
            if lengths == "128":
                right[f"{lengths}/weights/{i}"] = block.explain(x[None])[1][0]
    for i, x in enumerate(sequences("1")[:CHECKED]):
        right[f"1/memory/{i}"] = cross.attend_to(x[None], k, v)[0]
    np.savez(path, **right)


class Reference:
    """The right answers of one load."""

    def __init__(self, path: Path, lengths: str) -> None:
        with np.load(path) as file:
            self._right = {name: file[name] for name in file.files if name.startswith(f"{lengths}/")}
        self._lengths = lengths

    def check(self, number: int, answer: dict[str, np.ndarray]) -> None:
        """Compare an answer for one sequence: `output`, `memory`, `weights`, or the top weights' `values`, `indices`.

        Raises:
            AssertionError: the answer is wrong.
        """
        for name, got in answer.items():
            if name not in {"values", "indices"}:
                right = self._right[f"{self._lengths}/{name}/{number}"]
                np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5, err_msg=f"{name} of sequence {number}")
        if "values" in answer:
            mean = self._right[f"{self._lengths}/weights/{number}"].mean(0, keepdims=True)
            top = -np.sort(-mean, axis=-1)[..., :TOP]
            there = np.take_along_axis(mean, answer["indices"].astype(np.int64), -1)
            for found in (answer["values"], there):
                np.testing.assert_allclose(found, top, rtol=5e-3, atol=5e-3, err_msg=f"top {TOP} of sequence {number}")
