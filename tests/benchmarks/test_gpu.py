"""`make gpu`: its logic. There is no GPU here.

In the place of CUDA stands onnxruntime's CPU provider, a profile as CUDA writes it, or the stand-in of `stand_in_gpu`.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_server.inference.engine.onnxruntime import CPU, CUDA, OnnxRuntime
from attention_server.inference.engine.protocol import Run

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import graphs, trials
from benchmarks.gpu.graphs import GraphFile, GraphResult, prove, version_graphs
from benchmarks.gpu.placement import Placement, read_profile
from benchmarks.gpu.report import Report
from benchmarks.gpu.requirements import requirements
from benchmarks.gpu.trials import Load, Trial, fail_in_mid_run, try_devices
from tests.stand_in_gpu import StandInGpu

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"


def graph(name: str) -> GraphFile:
    model, _, file = name.partition("/")
    (found,) = (each for each in version_graphs(MODELS / model / "1") if each.name == f"{model}/{file}")
    return found


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proven() -> list[GraphResult]:
    """Every graph of an embedded model on the CPU provider in the place of the device."""
    return [prove(each, CPU) for each in version_graphs(MODELS / "cross-attention" / "1")]


def test_every_graph_is_compared_placed_and_timed(proven: list[GraphResult]) -> None:
    """Each ONNX file of a version equals float64, with its nodes counted, its times, and float16 tried."""
    assert {each.name for each in proven} == {
        f"cross-attention/{path.name}" for path in (MODELS / "cross-attention" / "1").glob("*.onnx")
    }
    for each in proven:
        assert each.failure == ""
        assert 0 < each.error < 1e-5
        assert each.half_error is not None and 1e-5 < each.half_error < 1e-2
        assert min(each.seconds, each.half_seconds, each.core_seconds) > 0
        assert each.placement is not None and each.placement.on_device
        assert not each.placement.floats_elsewhere


def test_graphs_that_a_gpu_does_not_serve_are_told(proven: list[GraphResult]) -> None:
    """The CPU's graphs of weights and masks are tried too, and marked."""
    apart = {each.name.partition("/")[2] for each in proven if not each.served}
    assert apart == {"attend-masked.onnx", "explain.onnx", "explain-masked.onnx"}


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (lambda x: x * 1.001, "is off by 1.0e-03 of the largest number; the bound is 0.0001"),
        (lambda x: np.full_like(x, np.nan), "is off by inf"),
        (lambda x: x[..., :-1], "is off by inf"),
    ],
    ids=["rounded", "nan", "shape"],
)
def test_other_numbers_are_a_failure(change: Any, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error such as TF32's, a NaN and another shape are failures with their figure."""
    run = graphs.run
    monkeypatch.setattr(graphs, "run", lambda *inputs: {name: change(x) for name, x in run(*inputs).items()})
    assert prove(graph("multi-head/project.onnx"), CPU).failure.startswith(failure)


def test_a_graph_that_cannot_run_is_a_failure_with_its_reason() -> None:
    result = prove(GraphFile("broken/x.onnx", b"no graph", 0, served=True), CPU)
    assert result.failure
    assert result.placement is None


def test_a_session_that_runs_beside_the_device_unseen_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the session claims CUDA but the profile of the run has the CPU, the operators are named."""
    monkeypatch.setattr(graphs, "ort", StandInGpu())
    result = prove(graph("multi-head/project.onnx"), CUDA)
    assert result.failure == "computes numbers beside the device: Add 2, MatMul 2"
    monkeypatch.setattr(graphs, "ort", StandInGpu(lost=True))
    assert "without CUDAExecutionProvider" in prove(graph("multi-head/project.onnx"), CUDA).failure


# --- the profile -----------------------------------------------------------------------------------------------------


def event(name: str, operator: str, provider: str, kind: str) -> dict[str, Any]:
    """Return a node's event as onnxruntime writes it."""
    arguments = {"op_name": operator, "provider": provider, "output_type_shape": [{kind: [2, 3]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": 5, "args": arguments}


def test_nodes_are_placed_by_the_profile(tmp_path: Path) -> None:
    """Nodes are counted once; numbers on the CPU are apart from sizes, and copies are counted."""
    events = [
        {"cat": "Session", "name": "model_run", "args": {}},
        event("a", "MatMul", CUDA, "float"),
        event("a", "MatMul", CUDA, "float"),
        event("b", "Softmax", CPU, "float16"),
        event("c", "Concat", CPU, "int64"),
        event("Memcpy_1", "MemcpyToHost", CUDA, "float"),
        {"cat": "Node", "name": "a_fence_before", "args": {}},
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    placement = Placement.of(read_profile(path), CUDA)
    assert placement == Placement(Counter(MatMul=1), Counter(Softmax=1), Counter(Concat=1), 1)


@pytest.mark.parametrize(
    ("events", "said"),
    [([event("a", "MatMul", "", "float")], "does not say where a_kernel_time was"), ([], "the profile has no nodes")],
)
def test_a_profile_that_does_not_say_is_refused(events: list[Any], said: str, tmp_path: Path) -> None:
    """A profile without places is an error: nothing is taken to have run on the device."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    with pytest.raises(ValueError, match=said):
        read_profile(path)


# --- the server ------------------------------------------------------------------------------------------------------


class FailingGraph:
    """A graph on a device of little memory.

    Args:
        spills: whether it answers what the device cannot hold, as by computing it elsewhere.
        breaks: whether it answers otherwise after a failure.
    """

    def __init__(self, *, spills: bool, breaks: bool) -> None:
        self.spills, self.breaks, self.failed = spills, breaks, False
        self.outputs = {"output": ("B", "P", 8)}

    def run(self, _: Sequence[str], feeds: Mapping[str, Any], __: Run) -> list[Any]:
        if feeds["query"].shape[1] > 100 and not self.spills:
            self.failed = True
            raise RuntimeError("CUDA failure 2: out of memory")
        return [np.full((1, 3, 8), float(self.breaks and self.failed))]


@pytest.mark.parametrize(
    ("spills", "breaks", "passed", "said"),
    [
        (
            False,
            False,
            True,
            "raised: RuntimeError: CUDA failure 2: out of memory; the same graph then answers as before",
        ),
        (False, True, False, "the same graph then answers otherwise"),
        (True, False, False, "223 positions were answered"),
    ],
    ids=["raised", "broken", "slower elsewhere"],
)
def test_a_failure_in_mid_run_must_be_raised(spills: bool, breaks: bool, passed: bool, said: str) -> None:
    """A run that needs more than the device has must raise; an answer to it comes from elsewhere, and is a failure."""

    class Engine:
        device = "cuda"

        def open(self, _: bytes) -> FailingGraph:
            return FailingGraph(spills=spills, breaks=breaks)

    trial = fail_in_mid_run(Engine(), graph(command.LARGE).content, 100_000)  # type: ignore[arg-type]
    assert trial.passed == passed
    assert said in trial.found


def found_by_name(tried: list[Trial]) -> dict[str, tuple[bool, str]]:
    return {trial.name: (trial.passed, trial.found) for trial in tried}


def test_servers_on_a_device_pass_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stand-in for a GPU, `cuda` and `auto` use it, nodes beside it are warned of; hidden, it is missed."""
    monkeypatch.setattr(trials, "LOAD_SECONDS", 0.2)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(ROOT), *sys.path]))
    server = (sys.executable, "-m", "tests.gpu_server")
    tried, loads = try_devices(MODELS, "multi-head", server=server)
    assert [trial for trial in tried if not trial.passed] == []
    found = found_by_name(tried)
    assert "nodes on cuda, weights off by 0.0e+00" in found["device=cuda"][1]
    assert "this onnxruntime offers no CUDA" in found["device=auto, the GPU hidden"][1]
    assert [load.place for load in loads] == ["cpu", "cuda", "auto"]
    assert all(load.rate > 0 and load.resident_bytes > 2**20 for load in loads)


@pytest.mark.long
def test_servers_without_a_device_fail_the_trials_that_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, `cuda` fails with the server's own words and `auto` is on the CPU, which is not passed."""
    monkeypatch.setattr(trials, "LOAD_SECONDS", 0.2)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    tried, loads = try_devices(MODELS, "multi-head")
    found = found_by_name(tried)
    assert found["device=cpu"][0]
    assert not found["device=cuda"][0]
    assert "device=cuda was asked for" in found["device=cuda"][1]
    assert found["device=auto"] == (False, found["device=auto"][1])
    assert "computes on cpu" in found["device=auto"][1]
    assert [load.place for load in loads] == ["cpu", "auto"]


# --- the report and the command --------------------------------------------------------------------------------------


def test_the_page_has_every_figure_and_failure() -> None:
    """The page names the device, versions, graphs, trials and loads; a graph that no GPU serves may fail."""
    placement = Placement(Counter(MatMul=4), Counter(), Counter(Concat=2, Shape=1), 3)
    good = GraphResult("m/attend.onnx", True, placement, 2e-7, 1e-3, "", 0.001, 0.0005, 0.02)
    apart = GraphResult("m/explain.onnx", False, failure="NotImplemented: output_qk")
    bad = GraphResult("m/front.onnx", True, placement, 0.01, None, "no kernel", 0.001, 0, 0.02, "is off by 1.0e-02")
    tried = [
        Trial("device=cuda", "computes on cuda", passed=True),
        Trial("device=auto", "computes on cpu", passed=False),
    ]
    loads = [Load("cpu", 300, 0, 2**27), Load("cuda", 900, 2**29, 2**28)]
    report = Report({"device": "H0", "driver": "9"}, [good, apart, bad], tried, loads, ["m/pool.onnx"], 12)
    assert report.failures() == [
        "m/front.onnx is off by 1.0e-02",
        "device=auto: computes on cpu",
        "m/pool.onnx was not run: out of time",
    ]
    page = report.page()
    assert "| device | H0 |" in page
    assert "| attend.onnx | 4 | Concat 2, Shape | 3 | 2.0e-07 | 1.0e-03 | 1.000 | 0.500 | 20.000 | 20.0 |  |" in page
    assert "| (explain.onnx) |" in page
    assert "| one CPU core | 300 | not told | 128 MiB |" in page
    assert "| cuda | 900 | 512 MiB | 256 MiB |" in page
    assert "**3 failures:**" in page
    assert "ran there and equals float64" in Report({}, [good, apart], [], [], [], 1).page()


def test_graphs_that_time_does_not_reach_are_failures() -> None:
    found = command.run_graphs([graph("multi-head/head.onnx")], CPU, time.monotonic() - 1)
    assert found == ([], ["multi-head/head.onnx"])


def test_without_a_gpu_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without a GPU the command ends with 1, says why, and leaves the page as it is."""
    assert command.main(["--out", str(tmp_path / "gpu.md")]) == 1
    assert "make gpu: device=cuda was asked for, but this onnxruntime offers no CUDA" in capsys.readouterr().err
    assert not (tmp_path / "gpu.md").exists()


def test_without_an_imported_model_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    StandInGpu().install(monkeypatch)
    assert command.main(["--imported", str(tmp_path), "--out", str(tmp_path / "gpu.md")]) == 1
    assert f"{tmp_path} has no versions of models; `make gpu-import` makes an imported one" in capsys.readouterr().err


def test_the_engine_of_the_proof_is_the_servers() -> None:
    """The proof gives sessions the server's options: no TF32 on CUDA, which rounds to a thousandth."""
    assert graphs.provider_options(CUDA) == {"use_tf32": "0"}
    assert OnnxRuntime("cpu", threads=1).device == "cpu"


def test_what_a_folder_of_wheels_must_have() -> None:
    """The requirements are the server's for a GPU and onnx: no torch, no onnxruntime for CPUs."""
    names = {each.partition(">")[0].partition("<")[0] for each in requirements()}
    assert {"numpy", "grpcio", "onnx", "onnxruntime-gpu", "tokenizers"} <= names
    assert not names & {"torch", "transformers", "onnxruntime", "attention-service"}
