"""Where a model computes is told: in the index, in the log, and in an error where the GPU fails.

There is no GPU here: onnxruntime's CUDA provider has a stand-in, which computes on the CPU.
"""

from pathlib import Path

import pytest
from attention_server.inference.engine.onnxruntime import CPU, CUDA, OnnxRuntime
from attention_server.inference.engine.protocol import DeviceError
from attention_server.repository.load_log import log_loaded
from attention_server.repository.loader import RepositoryError, load
from structlog.testing import capture_logs

from tests.stand_in_gpu import StandInGpu

BLOCK = Path(__file__).parents[2] / "models/self-attention/1"
MAX_BYTES = 2**28


def test_nodes_on_the_gpu_and_beside_it_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading counts nodes by device, and warns of each graph with nodes on the CPU, with their operators."""
    StandInGpu(on_cpu=["Concat"]).install(monkeypatch)
    engine = OnnxRuntime("cuda", threads=1)
    model = load(BLOCK, engine, MAX_BYTES)
    assert model.device == "cuda"
    beside = {name: graph.nodes["cpu"] for name, graph in model.graphs.items() if "cpu" in graph.nodes}
    assert beside["explain-explicit.onnx"].keys() == {"Concat"}
    assert model.nodes["cpu"] == sum(operators["Concat"] for operators in beside.values())
    assert model.nodes["cuda"] > model.nodes["cpu"]
    with capture_logs() as logs:
        log_loaded(model)
    assert logs[0]["nodes"] == model.nodes
    assert {entry["graph"]: entry["operators"] for entry in logs[1:]} == beside
    assert {(entry["log_level"], entry["model"], entry["version"]) for entry in logs[1:]} == {
        ("warning", "self-attention", 1)
    }


def test_nodes_on_the_cpu_are_no_warning_where_the_device_is_the_cpu() -> None:
    model = load(BLOCK, OnnxRuntime("cpu", threads=1), MAX_BYTES)
    assert model.nodes.keys() == {"cpu"}
    with capture_logs() as logs:
        log_loaded(model)
    assert [entry["log_level"] for entry in logs] == ["info"]


def test_auto_takes_the_gpu_where_a_session_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` and `cuda` use CUDA, `cpu` never asks for it; a graph that CUDA lacks may run on the CPU."""
    gpu = StandInGpu().install(monkeypatch)
    assert [OnnxRuntime(device, threads=1).device for device in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    assert gpu.providers == [[CUDA], [CUDA]]
    OnnxRuntime("auto", threads=1).open((BLOCK / "attend.onnx").read_bytes())
    assert gpu.providers[-1] == [CUDA, CPU]


@pytest.mark.parametrize(
    "gpu",
    [StandInGpu(lost=True), StandInGpu(out_of_memory=RuntimeError("CUDA failure 2: out of memory"))],
    ids=["no session on it", "out of memory"],
)
def test_a_gpu_that_fails_at_the_start(gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `cuda` it is an error; with `auto` the CPU computes, and the log says why."""
    gpu.install(monkeypatch)
    with pytest.raises(DeviceError, match=r"device=cuda was asked for, but onnxruntime .*; use device=cpu, or auto"):
        OnnxRuntime("cuda", threads=1)
    with capture_logs() as logs:
        assert OnnxRuntime("auto", threads=1).device == "cpu"
    assert logs[0]["event"] == "computing on the CPU"
    assert logs[0]["reason"].startswith("onnxruntime ")


@pytest.mark.parametrize("fault", ["lost", "out_of_memory"])
def test_a_gpu_that_fails_later_gets_no_model_onto_the_cpu(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that the GPU takes no more is refused with the reason in the log; it is not computed on the CPU."""
    gpu = StandInGpu().install(monkeypatch)
    engine = OnnxRuntime("auto", threads=1)
    setattr(gpu, fault, RuntimeError("CUDA failure 2: out of memory") if fault == "out_of_memory" else True)
    with pytest.raises(RepositoryError) as refused:
        load(BLOCK, engine, MAX_BYTES)
    assert "CUDA" in refused.value.log_reason
