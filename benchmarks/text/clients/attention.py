"""Load of texts on attention.v1 over gRPC: unary calls of one text, or one stream of batches."""

import asyncio
from pathlib import Path

import numpy as np
from attention_client import AttendResult, AttentionClient, OutputSpec, TopK
from attention_client import Sequence as Item
from attention_client.inputs import Output
from attention_client.streaming.batcher import Batcher
from attention_client.wire.request import attend_request, packed_request

from benchmarks.serving.clients.attention import blocking, concurrent, streamed
from benchmarks.serving.clients.loop import given_load, print_measurement
from benchmarks.text.fused import PAIRS, TOP, Answer
from benchmarks.text.texts import CHECKED, Texts

HIDDEN = OutputSpec("hidden", pool="mean")
ASKED: dict[str, tuple[Output, ...]] = {
    "hidden": (HIDDEN,),
    "top": (HIDDEN, OutputSpec("weights", pairs=PAIRS, top_k=TOP)),
}


def main() -> None:
    """Measure one mode."""
    load = given_load()
    texts, asked, top = Texts(Path(load.reference), load.lengths), ASKED[load.outputs], load.outputs == "top"
    items = [Item(text=text) for text in texts]
    with AttentionClient(load.target) as client:
        for number, result in enumerate(client.attend_batch("minilm", items[:CHECKED], outputs=asked)):
            texts.check(number, read(result), top=top)
    if not load.seconds:
        print_measurement({})
    elif load.mode == "streamed":
        batcher = Batcher(lambda batch: packed_request("minilm", batch, asked, 0, False))
        full = [batcher.add(item) for item in items]
        print_measurement(streamed([each.request for each in (*full, *batcher.rest()) if each and each.request], load))
    else:
        requests = [attend_request("minilm", [item], asked, 0, False) for item in items]
        alone = load.concurrency == 1
        print_measurement(blocking(requests, load) if alone else asyncio.run(concurrent(requests, load, 1)))


def read(result: AttendResult) -> Answer:
    """Return an answer's arrays."""
    answer: Answer = {"hidden": np.asarray(result["hidden"]).reshape(-1)}
    weights = result.outputs.get("weights")
    if isinstance(weights, TopK):
        answer |= {"values": weights.values, "indices": weights.indices}
    return answer


if __name__ == "__main__":
    main()
