"""Long sequences: time and memory over their length, of the service's core in process, one thread.

    .venv-dev/bin/python -m benchmarks.long_sequences            # writes docs/long-sequences.md and its figure
    .venv-dev/bin/python -m benchmarks.long_sequences --quick    # two short lengths; writes build/bench/quick/

A multi-head block of d=384 with 12 heads and random weights. Each cell is a process of its own: the CPU seconds of one
answer, the least of some, and the peak of resident memory above what it was before. Beside it run, on one thread and
with the same projections, `com.microsoft.MultiHeadAttention` in onnxruntime, torch's `scaled_dot_product_attention`,
and the graph of weights as a whole with NumPy's top k. Ratios of time are of loads that take turns in one process, the
median of rounds, each between two runs of the first load: memory that a load takes is resident then. Rows by handle
compute in memory that the arena keeps since the handle was made: their peak is what they take beyond it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
QUICK = (512, 1024)
WIDTH, HEADS, CHOSEN = 384, 12, 256
CAUSAL = {"causal": "top_left"}
WINDOW = {"causal": "top_left", "window": (127, 0)}
TOP = {"name": "weights", "top_k": 8}
LOADS = {  # outputs, mask
    "output": ({"name": "output"}, {}),
    "top 8 of the mean of heads": ({**TOP, "reduce": "mean"}, {}),
    "top 8 of each head": (TOP, {}),
    "entropy": ({"name": "entropy"}, {}),
    "output, causal": ({"name": "output"}, CAUSAL),
    "output, window of 128": ({"name": "output"}, WINDOW),
    "top 8 of each head, window of 128": (TOP, WINDOW),
    "256 rows by handle, top 16": ({"name": "weights", "top_k": 16}, {}),
}
MHA, SDPA, WHOLE, ROWS = "MultiHeadAttention", "torch, SDPA", "whole weights, NumPy's top 8", "the graph for 256 rows"
# Loads that take turns in one process: rounds, the first one, and those that each round compares with it.
DOUBLED = tuple([(1, (name, 8192), ((name, 16384),)) for name in list(LOADS)[:7]])
TURNS = (
    (3, ("output", 8192), ((MHA, 8192), (SDPA, 8192), ("output, window of 128", 8192))),
    (3, ("top 8 of the mean of heads", 8192), ((WHOLE, 4096),)),
    (3, ("top 8 of each head", 8192), (("top 8 of each head, window of 128", 8192),)),
    (3, ("256 rows by handle, top 16", 32768), ((ROWS, 32768),)),
    *DOUBLED,
)
PEERS = (MHA, SDPA, WHOLE, ROWS)
MOST = {WHOLE: 4096} | dict.fromkeys(list(LOADS)[1:4], 16384)  # of the lengths; minutes beyond
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ROOT = Path(__file__).parents[1]

Step = Callable[[], object]
Load = tuple[str, int]  # its name and length
Quotients = dict[tuple[Load, Load], float]  # of the time of a load, and of that which it is divided by


def main() -> None:
    parser = argparse.ArgumentParser(
        "long_sequences", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two short lengths")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "NAME", "LENGTH"), help="one measurement")
    parser.add_argument(
        "--turns", nargs=2, metavar=("FOLDER", "LOADS"), help="loads that take turns: an entry of TURNS"
    )
    options = parser.parse_args()
    if options.child:
        folder, name, length = options.child
        sys.stdout.write(json.dumps(measure(Path(folder), name, int(length))) + "\n")
        return
    if options.turns:
        sys.stdout.write(json.dumps(take_turns(Path(options.turns[0]), *json.loads(options.turns[1]))) + "\n")
        return
    lengths = QUICK if options.quick else LENGTHS
    with TemporaryDirectory() as folder:
        export(Path(folder))
        found = {
            name: {length: child(folder, name, length) for length in lengths if length <= MOST.get(name, LENGTHS[-1])}
            for name in (*LOADS, *PEERS)
        }
        quotients: Quotients = {}
        for turns in () if options.quick else TURNS:
            quotients |= of_turns(folder, turns)
    into = ROOT / ("build/bench/quick" if options.quick else "docs")
    (into / "figures").mkdir(parents=True, exist_ok=True)
    (into / "long-sequences.md").write_text(report(found, quotients, lengths))
    draw(found, into / "figures/long-sequences.svg")


def export(folder: Path) -> None:
    import torch
    from attention_export import export as exporting
    from attention_export import verify
    from attention_export.blocks import Dims, MultiHead
    from attention_export.model import Model

    torch.manual_seed(0)
    verify.LENGTHS = ((2, 7),)
    block = MultiHead(Dims(query=WIDTH, heads=HEADS))
    exporting.export(Model(block, "Of random weights."), folder, "wide", 1, progress=lambda _: None)


def child(folder: str, name: str, length: int) -> dict[str, float]:
    measured: dict[str, float] = run_child("--child", folder, name, str(length))
    sys.stderr.write(f"{name}, T={length}: {measured['seconds']:.3g} s, {measured['mib']:.0f} MiB\n")
    return measured


def of_turns(folder: str, turns: tuple[int, Load, tuple[Load, ...]]) -> Quotients:
    _, first, others = turns
    found = run_child("--turns", folder, json.dumps(turns))
    for (name, length), quotient in zip(others, found, strict=True):
        sys.stderr.write(f"{name}, T={length} / {first[0]}, T={first[1]}: {quotient:.3g}\n")
    return {(other, first): quotient for other, quotient in zip(others, found, strict=True)}


def run_child(*arguments: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.long_sequences", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ONE_THREAD)
    return json.loads(done.stdout)


def take_turns(folder: Path, rounds: int, first: Load, others: list[Load]) -> list[float]:
    """Return for each of the others the median over rounds of its time by that of the first before and behind it."""
    from attention_proto.allocator import keep_freed

    keep_freed()
    one, *further = [step_of(folder, *load) for load in (first, *others)]
    before = timed(one)
    quotients = []
    for _ in range(rounds):
        seconds = [timed(step) for step in further]
        behind = timed(one)
        quotients.append([2 * each / (before + behind) for each in seconds])
        before = behind
    return [float(each) for each in np.median(quotients, 0)]


def measure(folder: Path, name: str, length: int) -> dict[str, float]:
    from attention_proto.allocator import keep_freed

    keep_freed()
    step = step_of(folder, name, length)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident from here on
    seconds = [timed(step)]
    peak = status("VmHWM") - before
    while sum(seconds) < 0.5 and len(seconds) < 5:
        seconds.append(timed(step))
    return {"seconds": min(seconds), "mib": max(0, peak) / 1024}


def step_of(folder: Path, name: str, length: int) -> Step:
    x = np.random.default_rng(0).standard_normal((length, WIDTH)).astype(np.float32)
    make = {MHA: mha, SDPA: sdpa, WHOLE: whole, ROWS: rows_alone}.get(name)
    return core(folder, name, x) if make is None else make(folder, x)


def timed(step: Step) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


def status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def core(folder: Path, name: str, x: np.ndarray) -> Step:
    """A load in the service's core."""
    from attention_proto.masks import Mask
    from attention_server.auth.callers import ALL_RIGHTS
    from attention_server.domain import messages
    from attention_server.domain.call import CallContext
    from attention_server.service.build import make_core
    from attention_server.settings import Settings
    from attention_server.telemetry import logs

    logs.configure("warning", "text")
    most = {"max_scores_mib": 16384, "max_answer_mib": 2047, "max_message_mib": 2047, "memory_mib": 2047}
    settings = Settings.model_validate({"models": folder, "slots": 1, "max_work_mib": 2**20, **most})
    made = make_core(settings)
    made.repository.load()
    output, mask = LOADS[name]
    sequence = {"query": x}
    if name.startswith("256"):
        kept = made.service.submit_memory(messages.MemoryRequest("wide", key=x), call(CallContext, ALL_RIGHTS))
        sequence = {"query": np.ascontiguousarray(x[:: len(x) // CHOSEN]), "memory": kept.result().id}

    def ask(**given: object) -> messages.Response:
        request = messages.Request(
            "wide",
            inputs=(messages.Sequence(path="inputs[0]", **given),),
            outputs=(messages.OutputSpec(**output),),
            mask=Mask(**mask) if mask else messages.NO_MASK,
        )
        return made.service.submit(request, call(CallContext, ALL_RIGHTS)).result()

    ask(**(sequence | {"query": sequence["query"][:4]}))
    return lambda: ask(**sequence)


def call(context: type, rights: object) -> object:
    return context(uuid.uuid4().hex, rights=rights)


def session(nodes: list, names: list[str], results: list[str]) -> "ort.InferenceSession":  # noqa: F821
    import onnxruntime as ort
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, WIDTH]) for name in names]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "peer", values, outputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def matrices() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4, WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5


def mha(_: Path, x: np.ndarray) -> Step:
    """Projections by NumPy, and one graph of attention over all rows."""
    from onnx import helper

    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=HEADS)
    graph, (m_q, m_k, m_v, m_o) = session([node], ["q", "k", "v"], ["y"]), matrices()
    return lambda: graph.run(None, {"q": (x @ m_q)[None], "k": (x @ m_k)[None], "v": (x @ m_v)[None]})[0][0] @ m_o


def sdpa(_: Path, x: np.ndarray) -> Step:
    import torch

    torch.set_num_threads(1)
    vectors, all_of = torch.from_numpy(x), torch.from_numpy(matrices())

    def run() -> object:
        with torch.inference_mode():
            q, k, v = [(vectors @ m).view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for m in all_of[:3]]
            heads = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return heads.transpose(1, 2).reshape(-1, WIDTH) @ all_of[3]

    return run


def weights(rows: slice, x: np.ndarray) -> Callable[[], np.ndarray]:
    from onnx import helper

    names = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "qk_matmul_output_mode": 3}
    graph = session(
        [helper.make_node("Attention", ["q", "k", "v"], ["y", "", "", "w"], **names)], ["q", "k", "v"], ["w"]
    )
    m_q, m_k, m_v, _ = matrices()
    k, v = (x @ m_k)[None], (x @ m_v)[None]
    return lambda: graph.run(["w"], {"q": (x[rows] @ m_q)[None], "k": k, "v": v})[0][0]


def whole(_: Path, x: np.ndarray) -> Step:
    """All weights at once, their mean over heads, and NumPy's partition."""
    run = weights(slice(None), x)
    return lambda: np.argpartition(-run().mean(0), 8, -1)[:, :8]


def rows_alone(_: Path, x: np.ndarray) -> Step:
    """The weights of 256 rows, without their top k; keys and values are projected before."""
    return weights(slice(None, None, len(x) // CHOSEN), x)


def report(found: dict, quotients: Quotients, lengths: tuple[int, ...]) -> str:
    lines = ["# Long sequences: time and memory", "", " ".join((__doc__ or "").split("\n\n")[2].split()), ""]
    lines += ["| | " + " | ".join(f"T={length}" for length in lengths) + " |", "|---|" + "---|" * len(lengths)]
    for name, by_length in found.items():
        cells = [
            f"{each['seconds']:.3g} s, {each['mib']:.0f} MiB" if (each := by_length.get(n)) else "" for n in lengths
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "![seconds and MiB by length](figures/long-sequences.svg)", ""]
    lines += ["| figure | measured | target |", "|---|---|---|"]
    lines += [f"| {words} | {value:.3g} | {target} |" for words, value, target in targets(found, quotients)]
    return "\n".join(lines) + "\n"


def targets(found: dict, quotients: Quotients) -> list[tuple[str, float, str]]:
    """The figures that are bounded, of the lengths that were measured."""
    made: list[tuple[str, float, str]] = []
    mean, each, handle = list(LOADS)[1], list(LOADS)[2], list(LOADS)[7]

    def add(words: str, target: str, value: Callable[[], float]) -> None:
        try:
            made.append((words, value(), target))
        except KeyError:  # of a length that was not measured
            return

    def ratio(name: str, length: int, other: str, at: int) -> float:
        pair = ((name, length), (other, at))
        return quotients[pair] if pair in quotients else 1 / quotients[pair[::-1]]

    for name, length, most in (("output", 8192, 200), ("output", 32768, 700), (mean, 8192, 300), (each, 8192, 500)):
        add(f"{name}, T={length}: MiB", f"<= {most}", lambda name=name, length=length: found[name][length]["mib"])
    add(f"{handle}, T=32768: MiB", "<= 200", lambda: found[handle][32768]["mib"])
    for other, most in ((MHA, 1.15), (SDPA, 1.0)):
        add(f"`output`, T=8192: time / {other}", f"<= {most}", lambda other=other: ratio("output", 8192, other, 8192))
    add(f"{mean}, T=8192: time / 4 x {WHOLE}, T=4096", "<= 0.4", lambda: ratio(mean, 8192, WHOLE, 4096) / 4)
    add(f"{handle}, T=32768: time / {ROWS}", "<= 1.3", lambda: ratio(handle, 32768, ROWS, 32768))
    for name, plain in ((list(LOADS)[5], "output"), (list(LOADS)[6], each)):
        add(f"{name}, T=8192: time / without a window", "<= 0.1", lambda n=name, p=plain: ratio(n, 8192, p, 8192))
    for name in list(LOADS)[:7]:
        add(f"{name}: time, T=16384 / 8192", "<= 4.3", lambda name=name: ratio(name, 16384, name, 8192))
        add(f"{name}: MiB, T=16384 / 8192", "<= 2.2", lambda n=name: found[n][16384]["mib"] / found[n][8192]["mib"])
    return made


def draw(found: dict, path: Path) -> None:
    from benchmarks.serving.figure import INK, plt

    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "long", "font.family": "sans-serif", **style}):
        figure, both = plt.subplots(1, 2, figsize=(11, 4.5))
        for axes, key, label in zip(both, ("seconds", "mib"), ("CPU seconds", "MiB above the start"), strict=True):
            for name, by_length in found.items():
                line = "--" if name in PEERS else "-"
                axes.plot(list(by_length), [max(each[key], 1e-3) for each in by_length.values()], line, label=name)
            axes.set(xscale="log", yscale="log", xlabel="T", ylabel=label)
            axes.set_xticks(sorted({length for each in found.values() for length in each}))
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.spines[["top", "right"]].set_visible(False)
        both[1].legend(frameon=False, fontsize="small", bbox_to_anchor=(1, 1))
        figure.savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
