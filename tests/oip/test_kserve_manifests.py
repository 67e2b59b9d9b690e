"""KServe manifests: KServe's classes know every field, and the server every flag, path and service in the manifests."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from serving import HANG, ROOT, SERVER, free_port, start_server

FOLDER = ROOT / "deploy/kserve"
RUNTIMES = sorted(FOLDER.glob("serving-runtime*.yaml"))


def container(path: Path) -> dict[str, Any]:
    (only,) = yaml.safe_load(path.read_text())["spec"]["containers"]
    return only


def held_against_the_sdk(*paths: Path) -> Any:
    command = [ROOT / ".venv-clients/bin/python", ROOT / "tests/oip/clients/manifests.py", *paths]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG)


def test_kserve_knows_every_field():
    """No manifest has a field, or a type of one, that the SDK's classes have not."""
    done = held_against_the_sdk(*sorted(FOLDER.glob("*.yaml")))
    assert done.returncode == 0, done.stderr


def test_a_field_that_is_none_is_found(tmp_path):
    """An unknown field is found, so the test above can fail."""
    text = (FOLDER / "serving-runtime.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(
        text.replace("protocolVersions", "protocolVersion").replace("containerPort: 8080", "containerPort: '8080'")
    )
    done = held_against_the_sdk(tmp_path / "wrong.yaml")
    assert "wrong.yaml.spec.protocolVersion: V1alpha1ServingRuntimeSpec has no such field" in done.stderr
    assert "wrong.yaml.spec.containers[0].ports[0].containerPort: must be int" in done.stderr


@pytest.mark.parametrize("path", RUNTIMES, ids=lambda path: path.stem)
def test_the_server_knows_every_flag(path):
    """Each flag of the container is one of the server's, and it listens where the manifest says."""
    arguments = dict(each.removeprefix("--").split("=") for each in container(path)["args"])
    described = subprocess.run([SERVER, "--help"], capture_output=True, text=True, check=True, timeout=HANG).stdout
    for name in arguments:
        assert f"--{name} " in described, name
    (port,) = container(path)["ports"]
    assert str(port["containerPort"]) in (arguments.get("rest-port"), arguments.get("grpc-port"))


def test_the_probes_are_answered(repository):
    """The paths that the probes of HTTP ask are there, on the port of REST or of health."""
    probes = [container(path)[kind] for path in RUNTIMES for kind in ("readinessProbe", "livenessProbe")]
    health = free_port()
    with start_server(repository, f"--health-port={health}") as server:
        for probe in (each["httpGet"] for each in probes if "httpGet" in each):
            url = f"http://127.0.0.1:{health}" if probe["port"] == 8090 else server.url
            assert requests.get(url + probe["path"], timeout=HANG).status_code == 200


def test_the_service_names_a_runtime_that_is_there():
    """The InferenceService and its runtime agree on the name, the format and the protocol."""
    model = yaml.safe_load((FOLDER / "inference-service.yaml").read_text())["spec"]["predictor"]["model"]
    runtimes = {each["metadata"]["name"]: each["spec"] for each in (yaml.safe_load(p.read_text()) for p in RUNTIMES)}
    runtime = runtimes[model["runtime"]]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["supportedModelFormats"]}


@pytest.mark.parametrize("path", RUNTIMES, ids=lambda path: path.stem)
def test_the_stop_fits_in_the_grace_period(path):
    """KServe waits longer for a pod that ends than the server takes to stop."""
    arguments = dict(each.removeprefix("--").split("=") for each in container(path)["args"])
    predictor = yaml.safe_load((FOLDER / "inference-service.yaml").read_text())["spec"]["predictor"]
    stop = float(arguments["stop-accepting-after"]) + float(arguments["grace"])
    assert predictor["terminationGracePeriodSeconds"] > stop
