"""ONNX's attention test cases, sent to a real server over gRPC and REST, at each case's tolerance."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import requests
from attention_client import AttentionClient, Sequence
from conformance.onnx_cases import Attributes, Case, load
from serving import HANG, ROOT, Server, made_once, start_server

CASES, OTHERS = load()
EXPORT = """
import json, sys
from pathlib import Path
import torch
import attention_export.export as exporter
from attention_export import verify
from attention_export.model import Model
from conformance.onnx_cases import Attributes
torch.set_num_threads(1)
verify.LENGTHS = ((2, 7),)  # ONNX's cases verify these graphs
graphs = exporter.attend_graphs
exporter.attend_graphs = lambda *given: [pair for pair in graphs(*given) if not pair[1].explicit]  # that is CUDA's
for attributes in (Attributes(**json.loads(each)) for each in sys.argv[2:]):
    exporter.export(Model(attributes.block(), "An ONNX conformance set."), Path(sys.argv[1]), attributes.model, 1)
"""
NAMES = {np.dtype("?"): "BOOL", np.dtype("<f2"): "FP16", np.dtype("<f4"): "FP32"}


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with a model for every set of attributes. Exports take minutes; those of equal sources are reused."""
    parts = ("blocks", "graphs", "export", "manifest", "model", "verify")
    sources = [ROOT / f"model_export/attention_export/{part}.py" for part in parts]
    sources += [ROOT / "proto/attention/v1/attention.proto", Path(__file__).with_name("onnx_cases.py")]
    models = sorted({case.attributes for case in CASES}, key=lambda attributes: attributes.model)

    def make(folder: Path) -> None:
        halves = (models[::2], models[1::2])
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda half: _export(folder, half), halves))

    repository = made_once(request.config.cache.mkdir("onnx-attention"), [*sources, repr(models).encode()], make)
    with start_server(repository) as running:
        yield running


def _export(folder: Path, models: list[Attributes]) -> None:
    command = [sys.executable, "-c", EXPORT, str(folder), *(json.dumps(asdict(each)) for each in models)]
    subprocess.run(command, check=True, cwd=ROOT / "tests", capture_output=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removeprefix("test_attention_"))
def test_case_over_grpc(case: Case, server: Server) -> None:
    """Outputs, and scores or weights where the case has these, equal ONNX's."""
    outputs, model = ["output", *case.stages], case.attributes.model
    with AttentionClient(server.grpc) as client:
        memories = [{"memory": client.create_memory(model, key=key, value=value)} for key, value in case.pasts]
        behind = memories or [{}] * len(case.sequences)
        sequences = [Sequence(**each, **memory) for each, memory in zip(case.sequences, behind, strict=True)]
        results = client.attend_batch(model, sequences, outputs=outputs)
    compare(case, [result.outputs for result in results])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removeprefix("test_attention_"))
def test_case_over_rest(case: Case, server: Server) -> None:
    """The same over REST, as JSON with tensors in base64."""
    url = f"{server.url}/v1/models/{case.attributes.model}"
    pasts = [{"key": _encoded(key), "value": _encoded(value)} for key, value in case.pasts]
    made = [requests.post(f"{url}/memories", json=each, timeout=HANG).json()["id"] for each in pasts]
    behind = [{"memory": each} for each in made] or [{}] * len(case.sequences)
    body = {
        "inputs": [_json(each) | memory for each, memory in zip(case.sequences, behind, strict=True)],
        "outputs": ["output", *case.stages],
        "encoding": "base64",
    }
    response = requests.post(f"{url}:attend", json=body, timeout=HANG)
    assert response.status_code == 200, response.text
    compare(case, [{name: _decoded(x) for name, x in each["outputs"].items()} for each in response.json()["results"]])


def test_every_case_is_offered_or_named() -> None:
    """Every case runs or is listed with a reason, and most cases run."""
    assert sum(map(len, OTHERS.values())) + len(CASES) >= 93
    assert len(CASES) >= 88


def compare(case: Case, results: list) -> None:
    """Compare each sequence with the case. fp16 cases allow for ONNX's rounding of each step."""
    half = case.sequences[0]["query"].dtype == np.float16
    rtol, atol = (max(case.rtol, 5e-3), max(case.atol, 5e-3)) if half else (case.rtol, max(case.atol, 1e-6))
    for index, outputs in enumerate(results):
        np.testing.assert_allclose(outputs["output"], case.outputs[index], rtol=rtol, atol=atol)
        for stage, expected in case.stages.items():
            np.testing.assert_allclose(outputs[stage], expected[index], rtol=rtol, atol=atol)


def _json(sequence: dict) -> dict:
    mask = {name: sequence[name] for name in ("causal",) if name in sequence}
    mask |= {name: _encoded(sequence[name]) for name in ("allowed", "bias") if name in sequence}
    if "window" in sequence:
        mask["window"] = dict(zip(("left", "right"), sequence["window"], strict=True))
    return {name: _encoded(sequence[name]) for name in ("query", "key", "value")} | ({"mask": mask} if mask else {})


def _encoded(array: np.ndarray) -> dict:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"data_type": NAMES[array.dtype], "shape": list(array.shape), "data": data}


def _decoded(tensor: dict) -> np.ndarray:
    dtype = next(dtype for dtype, name in NAMES.items() if name == tensor["data_type"])
    return np.frombuffer(base64.b64decode(tensor["data"]), dtype).reshape(tensor["shape"])
