"""Single steps of a decoder behind a prefix: the service in process and over gRPC, one fused graph, `transformers`.

    taskset -c 1 .venv-dev/bin/python -m benchmarks.steps build/bench/decoder
    taskset -c 1 .venv-dev/bin/python -m benchmarks.steps build/bench/decoder --quick   # one round, short prefixes

Makes a Llama of random weights (6 layers, d=384, 12 heads, 8,000 tokens) in the folder, unless it is there, and imports
it. One thread; the server runs on core 0. Contenders take turns in rounds, and a round takes the least time of some
steps; of the steps of `generate`, over gRPC and in process, the mean time. Prints JSON: for each length of the prefix
the seconds of a step of each contender, by round; by how many seconds a step behind the longest prefix takes longer
than behind 64 positions, in the service and in the graphs of all sites alone over k and v in one piece; and the
medians over rounds of the ratios that have a target.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attention_client import AttentionClient

from benchmarks.steps_service import NAME, ServedConversation, conversation, generation, served, service

LENGTHS, BASE = (512, 4096), 64
QUICK, QUICK_BASE = (128, 512), 16
ROUNDS, STEPS = 12, 8
WIDTH, HEADS, LAYERS, INNER, TOKENS, MOST = 384, 12, 6, 1024, 8000, 8192
HEAD = WIDTH // HEADS
SERVICE, EIGHT = "service, a step kept", "service, eight conversations at one step"
GENERATED, SERVED = "service, a step of generate", "over gRPC, a step of the client's generate"
FUSED = "one fused graph, GroupQueryAttention on a shared buffer"
SDPA = "transformers, sdpa, DynamicCache"
SITES = "graphs of all sites alone, k and v in one piece"
CONVERSATIONS = 8
TOLERANCE = 1e-4  # of the largest logit

Step = Callable[[int], np.ndarray | int | None]  # of one token; returns its logits, [V], the next token's id, or None
Seconds = dict[str, list[float]]  # of a step of each contender, by round


def main() -> None:
    parser = argparse.ArgumentParser("steps", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint and the imported model")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--quick", action="store_true", help="one round, short prefixes: no figures, shows that it runs"
    )
    options = parser.parse_args()
    rounds, lengths, base = (1, QUICK, QUICK_BASE) if options.quick else (options.rounds, LENGTHS, BASE)
    source = checkpoint(options.folder)
    core = service(options.folder)
    with served(options.folder) as client:
        measured = {length: measure(source, core, client, length, rounds) for length in lengths}
    differences = measure_differences(options.folder, core, base, lengths[-1], rounds)
    found = {
        **measured,
        f"{lengths[-1]} less {base}": differences,
        "ratios": {length: ratios(seconds) for length, seconds in measured.items()}
        | {f"{lengths[-1]} less {base}": ratio_of_differences(differences)},
    }
    sys.stdout.write(json.dumps(found) + "\n")


def measure(source: Path, core: Any, client: AttentionClient, length: int, rounds: int) -> Seconds:
    """Return the seconds of a step of each contender in each round, behind a prefix of some length."""
    prompt = np.random.default_rng(length).integers(5, TOKENS, length)
    contenders: dict[str, Step] = {
        SERVICE: conversation(core, prompt, 1),
        EIGHT: conversation(core, prompt, CONVERSATIONS),
        GENERATED: generation(core, prompt),
        SERVED: ServedConversation(client, prompt).step,
        FUSED: fused(source, prompt),
        SDPA: transformers_step(source, prompt),
    }
    check(contenders)
    seconds: Seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            times = step_seconds(step)
            seconds[name].append(float(np.mean(times)) if name in {GENERATED, SERVED} else min(times))
    return seconds


def measure_differences(folder: Path, core: Any, base: int, length: int, rounds: int) -> Seconds:
    """Return by how many seconds a step behind one prefix takes longer than behind another, by round."""
    steps: dict[str, list[Step]] = {SERVICE: [], SITES: []}
    for positions in (length, base):
        prompt = np.random.default_rng(positions).integers(5, TOKENS, positions)
        steps[SERVICE].append(conversation(core, prompt, 1))
        steps[SITES].append(sites_alone(folder, positions))
    for each in (*steps[SERVICE], *steps[SITES]):
        each(7)
    seconds: Seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (long, short) in steps.items():
            seconds[name].append(min(step_seconds(long)) - min(step_seconds(short)))
    return seconds


def ratios(seconds: Seconds) -> dict[str, float]:
    """Return the ratios of steps a second that have a target, medians over rounds."""

    def rate(name: str, other: str, steps: int = 1) -> float:
        return float(np.median(steps * np.divide(seconds[other], seconds[name])))

    return {
        "a step, one fused graph = 1 (>= 0.9)": rate(SERVICE, FUSED),
        "a step, transformers = 1 (>= 2)": rate(SERVICE, SDPA),
        "tokens of eight conversations, one = 1 (>= 2)": rate(EIGHT, SERVICE, CONVERSATIONS),
        "a step over gRPC, in process = 1 (>= 0.75)": rate(SERVED, GENERATED),
    }


def ratio_of_differences(seconds: Seconds) -> dict[str, float]:
    """Return by how much more time a longer prefix takes in the service than in the sites' graphs alone, a median."""
    return {"time, the sites' graphs alone = 1 (<= 1.3)": float(np.median(np.divide(seconds[SERVICE], seconds[SITES])))}


def check(contenders: dict[str, Step]) -> None:
    """Compare the logits, or the id of the next token, of the first steps of every contender that returns these."""
    for token in (7, 99, 1234):
        results = {name: found for name, step in contenders.items() if (found := step(token)) is not None}
        right = results[SDPA]
        assert isinstance(right, np.ndarray)
        for name, found in results.items():
            difference = right.max() - right[found] if isinstance(found, int) else np.abs(found - right).max()
            error = float(difference / np.abs(right).max())
            if error > TOLERANCE:
                raise AssertionError(f"{name} differs from {SDPA} by {error:.1e} of the largest logit")


def step_seconds(step: Step) -> list[float]:
    """Return the times of some steps."""
    times = []
    for token in range(11, 11 + STEPS):
        begun = time.perf_counter()
        step(token)
        times.append(time.perf_counter() - begun)
    return times


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


def sites_alone(folder: Path, length: int) -> Step:
    """Return the step of the graphs of all sites and nothing else: one query, and keys one more at every step."""
    import onnxruntime as ort  # noqa: PLC0415
    from attention_proto.attention.v1.attention_pb2 import Manifest  # noqa: PLC0415
    from google.protobuf.json_format import Parse  # noqa: PLC0415

    version = folder / NAME / "1"
    layers = Parse((version / "manifest.json").read_text(), Manifest()).layers
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    files = [next(each.file.name for each in layer.attend if not (each.weights or each.mask)) for layer in layers]
    graphs = {
        name: ort.InferenceSession(version / name, options, providers=["CPUExecutionProvider"]) for name in set(files)
    }
    rng = np.random.default_rng(length)
    room = length + 4096
    sites = [(graphs[name], rng.standard_normal((2, 1, room, WIDTH), np.float32)) for name in files]
    query = rng.standard_normal((1, 1, WIDTH), np.float32)
    keys = length

    def step(_: int) -> None:
        nonlocal keys
        keys += 1
        for graph, (k, v) in sites:
            graph.run(None, {"q": query, "k": k[:, :keys], "v": v[:, :keys]})

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
