"""The fused graph behind mosec. FUSED is the graphs' folder; BATCHED=1 batches queued requests, padded and masked."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from mosec import Worker
from mosec.mixin import MsgpackMixin

from benchmarks.serving.peers.mosec_server import serve
from benchmarks.text.fused import Answer, Fused


class Single(MsgpackMixin, Worker):
    """Worker that computes requests one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = Fused(Path(os.environ["FUSED"]))

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return _answer(self.fused.answer(data["text"], top=data["top"]))


class Batched(Single):
    """Worker that computes queued requests as one batch; hidden states only."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:  # type: ignore[override]
        return [_answer(each) for each in self.fused.answer_padded([one["text"] for one in data])]


def _answer(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {name: np.ascontiguousarray(array).tobytes() for name, array in answer.items()}
    return found | ({"rows": answer["values"].shape[1]} if "values" in answer else {})


if __name__ == "__main__":
    serve(Single, Batched)
