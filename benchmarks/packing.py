"""Packs of sequences against sequences one by one: in the server's core, and through one fused graph.

    taskset -c 1 .venv-dev/bin/python -m benchmarks.packing build/bench/packing

Makes a BERT of random weights (6 layers, d=384, 12 heads, 8,000 tokens) in the folder, unless it is there, and imports
it. One thread; contenders take turns in rounds on the same sequences, in one order. Prints a table for each mix of
lengths: CPU seconds, and the ratio of one by one through one fused graph to them, medians of the rounds.
"""

import argparse
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import minilm

TOKENS, WIDTH, HEADS, LAYERS, INNER, MOST = 8000, 384, 12, 6, 1536, 512
NAME = "encoder"
SEQUENCES, ROUNDS = 256, 7
PADDED = 32  # sequences of a padded batch
FUSED, SORTED, AS_SENT = "one by one, one fused graph", "fused, padded in 32, sorted", "fused, padded in 32, as sent"
ALONE, PACKED = "one by one, the server's core", "packed, the server's core"

Lengths = list[int]
Compute = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray] | None]  # tokens -> mean rows of the last hidden state


def mixes(rng: np.random.Generator, count: int) -> dict[str, Lengths]:
    """Return the lengths of sequences by the name of the mix."""
    return {
        "4": [4] * count,
        "8 to 24": rng.integers(8, 25, count).tolist(),
        "8 to 256": np.exp(rng.uniform(np.log(8), np.log(256), count)).astype(int).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser("packing", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint, the imported model and its fused graph")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of a round")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    compute = contenders(options.folder)
    for name, lengths in mixes(rng, options.sequences).items():
        texts = [rng.integers(5, TOKENS, length) for length in lengths]
        check(compute, texts)
        seconds: dict[str, list[float]] = {each: [] for each in compute}
        for _ in range(options.rounds):
            for each, run in compute.items():
                seconds[each].append(cpu_seconds(run, texts))
        print(f"\n| lengths {name} | CPU s | times one by one |\n|---|---|---|")  # noqa: T201
        for each, taken in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(seconds[FUSED], taken, strict=True))
            print(f"| {each} | {statistics.median(taken):.3f} | {ratio:.2f} |")  # noqa: T201


def cpu_seconds(run: Compute, texts: Sequence[np.ndarray]) -> float:
    """Return the CPU time of this process for all texts."""
    begun = time.process_time()
    run(texts)
    return time.process_time() - begun


def check(compute: dict[str, Compute], texts: Sequence[np.ndarray]) -> None:
    """Compare every contender with the fused graph, and packs with one by one to the bit."""
    answers = {name: run(texts) for name, run in compute.items()}
    for found, alone, right in zip(answers[PACKED] or (), answers[ALONE] or (), answers[FUSED] or (), strict=True):
        np.testing.assert_array_equal(found, alone)
        np.testing.assert_allclose(found, right, atol=minilm.TOLERANCE)


def contenders(folder: Path) -> dict[str, Compute]:
    """Return the computations by name; make the files that are missing."""
    checkpoint(folder)
    version, joined = folder / NAME / "1", folder / "joined.onnx"
    minilm.join(version, joined)
    one, padded = fused(joined), fused_padded(folder / "checkpoint", folder / "exported.onnx")
    core = service(folder)
    return {
        FUSED: lambda texts: [one(text) for text in texts],
        ALONE: lambda texts: [core([text])[0] for text in texts],
        PACKED: core,
        SORTED: lambda texts: padded(sorted(texts, key=len)),
        AS_SENT: padded,
    }


def checkpoint(folder: Path) -> None:
    """Make the checkpoint and import it, unless that was done before."""
    if (folder / NAME / "1/manifest.json").exists():
        return
    import torch  # noqa: PLC0415 # takes seconds
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast  # noqa: PLC0415

    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    config = BertConfig(num_attention_heads=HEADS, max_position_embeddings=MOST, **sizes)
    source = folder / "checkpoint"
    BertModel(config).eval().save_pretrained(source)  # type: ignore[no-untyped-call]
    words = {f"w{each}": each for each in range(TOKENS - 1)} | {"[UNK]": TOKENS - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 # no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")  # type: ignore[no-untyped-call] # noqa: S106
    fast.save_pretrained(source)
    command = (Path(sys.executable).with_name("attention-export"), "import", "transformer", source)
    options = ("--name", NAME, "--models", folder)
    subprocess.run(list(map(str, command + options)), check=True, stdout=sys.stderr)  # noqa: S603 # our own


def fused(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the computation of one text by the joined graph of segments and sites."""
    whole = minilm.whole_graph(path)
    return lambda text: whole(text[None])["hidden"][0].mean(0)


def fused_padded(source: Path, path: Path) -> Compute:
    """Return the computation of texts in padded batches, by one graph of the checkpoint with a mask."""
    if not path.exists():
        export_masked(source, path)
    from attention_export.verify import session  # noqa: PLC0415

    graph = session(path)

    def compute(texts: Sequence[np.ndarray]) -> None:
        for begin in range(0, len(texts), PADDED):
            batch = texts[begin : begin + PADDED]
            tokens = np.zeros((len(batch), max(map(len, batch))), np.int64)
            mask = np.zeros_like(tokens)
            for row, text in enumerate(batch):
                tokens[row, : len(text)], mask[row, : len(text)] = text, 1
            hidden = graph.run(None, {"tokens": tokens, "mask": mask})[0]
            (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)

    return compute


def export_masked(source: Path, path: Path) -> None:
    """Export the checkpoint as one graph that takes padded batches."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(source, attn_implementation="sdpa")

        def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> Any:
            return self.model(input_ids=tokens, attention_mask=mask).last_hidden_state

    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    example = (torch.ones((2, 9), dtype=torch.int64), torch.ones((2, 9), dtype=torch.int64))
    program = torch.onnx.export(
        Whole().eval(),
        example,
        dynamo=True,
        opset_version=23,
        input_names=["tokens", "mask"],
        output_names=["hidden"],
        dynamic_shapes={"tokens": sizes, "mask": sizes},
        verbose=False,
    )
    assert program is not None
    program.save(path)


def service(folder: Path) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Return the computation of the texts of one request by the server's core, on one slot."""
    from attention_proto.allocator import keep_freed  # noqa: PLC0415
    from attention_server.auth.callers import ALL_RIGHTS  # noqa: PLC0415
    from attention_server.domain.call import CallContext  # noqa: PLC0415
    from attention_server.domain.messages import OutputSpec, Request  # noqa: PLC0415
    from attention_server.domain.messages import Sequence as Sent  # noqa: PLC0415
    from attention_server.service.build import make_core  # noqa: PLC0415
    from attention_server.settings import Settings  # noqa: PLC0415

    keep_freed()  # as the server does
    core = make_core(Settings.model_validate({"models": folder, "slots": 1, "repository_mode": "none"}))
    core.repository.load()
    outputs = (OutputSpec("hidden", pool="mean"),)

    def compute(texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        inputs = tuple([Sent(token_ids=text) for text in texts])
        call = CallContext(uuid.uuid4().hex, rights=ALL_RIGHTS)
        response = core.service.submit(Request(NAME, inputs=inputs, outputs=outputs), call).result()
        return [result.outputs["hidden"] for result in response.results]

    return compute


if __name__ == "__main__":
    main()
