"""Single steps of a decoder behind a prefix: the service in process, one fused graph, `transformers` with its cache.

    taskset -c 1 .venv-dev/bin/python -m benchmarks.steps build/bench/decoder

Makes a Llama of random weights (6 layers, d=384, 12 heads, 8,000 tokens) in the folder, unless it is there, and imports
it. One thread; contenders take turns in rounds, and a round takes the least time of some steps. Prints JSON: for each
length of the prefix the seconds of a step of each contender, by round.
"""

import argparse
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (512, 4096)
ROUNDS, STEPS = 12, 8
WIDTH, HEADS, LAYERS, INNER, TOKENS, MOST = 384, 12, 6, 1024, 8000, 8192
HEAD = WIDTH // HEADS
SERVICE, EIGHT = "service, a step kept", "service, eight conversations at one step"
FUSED = "one fused graph, GroupQueryAttention on a shared buffer"
SDPA = "transformers, sdpa, DynamicCache"
CONVERSATIONS = 8
TOLERANCE = 1e-4  # of the largest logit
NAME = "decoder"

Step = Callable[[int], np.ndarray | None]  # of one token; returns its logits, [V], or None


def main() -> None:
    parser = argparse.ArgumentParser("steps", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint and the imported model")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(measure(options.folder, options.rounds)) + "\n")


def measure(folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of a step of each contender in each round, by the length of the prefix."""
    source = checkpoint(folder)
    core = service(folder)
    measured = {}
    for length in LENGTHS:
        prompt = np.random.default_rng(length).integers(5, TOKENS, length)
        contenders: dict[str, Step] = {
            SERVICE: conversation(core, prompt, 1),
            EIGHT: conversation(core, prompt, CONVERSATIONS),
            FUSED: fused(source, prompt),
            SDPA: transformers_step(source, prompt),
        }
        check(contenders)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, step in contenders.items():
                seconds[name].append(least_seconds(step))
        measured[str(length)] = seconds
    return measured


def check(contenders: dict[str, Step]) -> None:
    """Compare the logits of the first steps of every contender that returns some."""
    for token in (7, 99, 1234):
        logits = {name: found for name, step in contenders.items() if (found := step(token)) is not None}
        right = logits[SDPA]
        for name, found in logits.items():
            error = float(np.abs(found - right).max() / np.abs(right).max())
            if error > TOLERANCE:
                raise AssertionError(f"{name} differs from {SDPA} by {error:.1e} of the largest logit")


def least_seconds(step: Step) -> float:
    """Return the least time of some steps."""
    least = np.inf
    for token in range(11, 11 + STEPS):
        begun = time.perf_counter()
        step(token)
        least = min(least, time.perf_counter() - begun)
    return float(least)


def checkpoint(folder: Path) -> Path:
    """Return the folder of the checkpoint; make it, and import it, unless that was done before."""
    source = folder / "checkpoint"
    if (folder / NAME / "1/manifest.json").exists():
        return source
    import torch  # noqa: PLC0415 # takes seconds
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=INNER,
        max_position_embeddings=MOST,
    )
    model = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # so that attention is far from uniform
    model.save_pretrained(source)
    words = {f"w{each}": each for each in range(TOKENS - 1)} | {"[UNK]": TOKENS - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 # no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")  # type: ignore[no-untyped-call] # noqa: S106
    fast.save_pretrained(source)
    command = (Path(sys.executable).with_name("attention-export"), "import", "transformer", source)
    options = ("--name", NAME, "--models", folder, "--task", "causal-lm")
    subprocess.run(list(map(str, command + options)), check=True, stdout=sys.stderr)  # noqa: S603 # our own
    return source


def service(folder: Path) -> Any:
    """Return the server's core with the model, in this process, on one slot."""
    from attention_proto.allocator import keep_freed  # noqa: PLC0415
    from attention_server.service.build import make_core  # noqa: PLC0415
    from attention_server.settings import Settings  # noqa: PLC0415

    keep_freed()  # as the server does
    chosen = {"models": folder, "slots": 1, "repository_mode": "none", "memory_mib": 8192, "max_scores_mib": 4096}
    core = make_core(Settings.model_validate(chosen))
    core.repository.load()
    return core.service


def conversation(service: Any, prompt: np.ndarray, count: int) -> Step:
    """Return the step of some conversations in one request, each kept behind a memory of its own."""
    from attention_server.auth.callers import ALL_RIGHTS  # noqa: PLC0415
    from attention_server.domain.call import CallContext  # noqa: PLC0415
    from attention_server.domain.messages import MemoryRequest, OutputSpec, Request, Sequence  # noqa: PLC0415

    def call() -> CallContext:
        return CallContext(uuid.uuid4().hex, rights=ALL_RIGHTS)

    memories = [
        service.submit_memory(MemoryRequest(NAME, memory_token_ids=np.roll(prompt, place + (count > 1))), call())
        .result()
        .id
        for place in range(count)
    ]
    output = OutputSpec("logits") if count == 1 else OutputSpec("predictions")

    def step(token: int) -> np.ndarray | None:
        inputs = tuple([Sequence(token_ids=np.array([token]), memory=each, extend=True) for each in memories])
        response = service.submit(Request(NAME, inputs=inputs, outputs=(output,)), call()).result()
        for place, (result, before) in enumerate(zip(response.results, list(memories), strict=True)):
            service.delete_memory(NAME, before, call())
            memories[place] = result.memory.id
        return response.results[0].outputs["logits"][0] if count == 1 else None

    return step


def transformers_step(source: Path, prompt: np.ndarray) -> Step:
    """Return the step of `transformers` over its own cache."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, DynamicCache  # noqa: PLC0415

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa").eval()  # type: ignore[no-untyped-call]
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=torch.tensor(prompt[None]), past_key_values=cache, use_cache=True)

    def step(token: int) -> np.ndarray:
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        logits: np.ndarray = found.logits[0, 0].numpy()
        return logits

    return step


def fused(source: Path, prompt: np.ndarray) -> Step:
    """Return the step of one graph of the whole model, which writes keys and values into its own buffers."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = ort.InferenceSession(fused_graph(source), options, providers=["CPUExecutionProvider"])
    room = len(prompt) + 4096
    empty = np.zeros((1, HEADS, room, HEAD), np.float32)
    buffers = {
        f"{name}_{layer}": ort.OrtValue.ortvalue_from_numpy(empty.copy()) for layer in range(LAYERS) for name in "kv"
    }
    written = 0

    def step(tokens: np.ndarray) -> np.ndarray:
        nonlocal written
        count = len(tokens)
        feeds = {
            "tokens": tokens[None].astype(np.int64),
            "positions": np.arange(written, written + count, dtype=np.int64)[None],
            "last": np.array([[written + count - 1]], np.int32),
            "total": np.array(written + count, np.int32),
        }
        binding = graph.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(f"next_{name}", buffer)
        binding.bind_output("logits")
        graph.run_with_iobinding(binding)
        written += count
        logits: np.ndarray = binding.get_outputs()[-1].numpy()[0, -1]
        return logits

    step(prompt)
    return lambda token: step(np.array([token]))


def fused_graph(source: Path) -> bytes:
    """Return one graph of the whole checkpoint with GroupQueryAttention, as onnxruntime's own builder would make it."""
    import onnx  # noqa: PLC0415
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415
    from safetensors.numpy import load_file  # noqa: PLC0415

    matrices = load_file(source / "model.safetensors")
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    names: Iterator[str] = iter(f"t{each}" for each in range(10**6))

    def constant(name: str, array: np.ndarray) -> str:
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def operator(kind: str, *inputs: str, out: tuple[str, ...] = (), **attributes: Any) -> str:
        outputs = out or (next(names),)
        nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))
        return outputs[0]

    def linear(x: str, *names_: str) -> str:
        joined = np.concatenate([matrices[f"{each}.weight"].T for each in names_], 1)
        return operator("MatMul", x, constant(f"{names_[0]}.T", joined))

    def norm(x: str, name: str) -> str:
        scale = constant(name, matrices[f"{name}.weight"])
        return operator("RMSNormalization", x, scale, axis=-1, epsilon=1e-6)

    angles = np.arange(MOST)[:, None] / 10000.0 ** (np.arange(0, HEAD, 2) / HEAD)
    tables = [constant(each.__name__, each(angles).astype(np.float32)) for each in (np.cos, np.sin)]
    widths = constant("widths", np.array([WIDTH] * 3, np.int64))
    hidden = operator("Gather", constant("embeddings", matrices["model.embed_tokens.weight"]), "tokens")
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        packed = linear(norm(hidden, f"{at}.input_layernorm"), *(f"{at}.self_attn.{each}_proj" for each in "qkv"))
        q, k, v = (next(names) for _ in range(3))
        operator("Split", packed, widths, out=(q, k, v), axis=-1)
        turned = [operator("RotaryEmbedding", x, *tables, "positions", num_heads=HEADS) for x in (q, k)]
        heads = operator(
            "GroupQueryAttention",
            *(*turned, v, f"k_{layer}", f"v_{layer}", "last", "total"),
            out=(next(names), f"next_k_{layer}", f"next_v_{layer}"),
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            scale=HEAD**-0.5,
        )
        hidden = operator("Add", linear(heads, f"{at}.self_attn.o_proj"), hidden)
        normed = norm(hidden, f"{at}.post_attention_layernorm")
        gate, up = (linear(normed, f"{at}.mlp.{each}_proj") for each in ("gate", "up"))
        inner = operator("Mul", operator("Mul", gate, operator("Sigmoid", gate)), up)
        hidden = operator("Add", linear(inner, f"{at}.mlp.down_proj"), hidden)
    operator("Identity", linear(norm(hidden, "model.norm"), "lm_head"), out=("logits",))
    about, real, whole = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    pasts = [about(f"{name}_{layer}", real, ["B", HEADS, "P", HEAD]) for layer in range(LAYERS) for name in "kv"]
    nexts = [about(f"next_{each.name}", real, None) for each in pasts]
    counts = [about("last", TensorProto.INT32, ["B", 1]), about("total", TensorProto.INT32, [])]
    inputs = [about("tokens", whole, ["B", "T"]), about("positions", whole, ["B", "T"]), *pasts, *counts]
    graph = helper.make_graph(nodes, "fused", inputs, [*nexts, about("logits", real, None)], list(constants.values()))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return model.SerializeToString()


if __name__ == "__main__":
    main()
