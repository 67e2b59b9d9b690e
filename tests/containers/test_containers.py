"""The image and docker-compose.yml on a real Docker engine; engine.sh installs and starts one if none runs.

The GPU image cannot run here, since it needs an NVIDIA GPU and a registry's base image; compose's configuration of it
is checked. Images are kept, so that the next run builds from cached layers; containers and networks are removed.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
import yaml
from attention_client import AttentionClient, Unauthenticated
from attention_client.wire import channel
from packaging.utils import canonicalize_name
from serving import HANG, ROOT, wait_until

from tests.security.conftest import make_pems

BASE = "python:3.11-slim-bookworm"
IMAGE = "attention-service:test"
PROJECT = f"attention-test-{os.getpid()}"
MAX_ADDED_BYTES = 300_000_000
SENTENCE = "I gave my cat Tater a toy"
ANSWER = {"giver": "I", "recipient": "Tater", "object": "toy"}

# A build uses this machine's network for the package index; a short interval avoids ten seconds of waiting.
OVERRIDE = "services: {server: {build: {network: host}, healthcheck: {interval: 1s}}}\n"

# Without the caller's settings, and with Debian's docker, installed by engine.sh, first on the path.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("ATTENTION_", "COMPOSE_", "PYTHON"))},
    "PATH": f"/usr/bin:{os.environ['PATH']}",
    "DOCKER_BUILDKIT": "1",
    "ENGINE_STORAGE_DRIVER": "auto",
    "ATTENTION_IMAGE": IMAGE,
    "ATTENTION_REST_PORT": "0",
    "ATTENTION_GRPC_PORT": "0",
}

pytestmark = pytest.mark.containers


class Server(NamedTuple):
    """The service as run by compose: the container's id and the addresses."""

    container: str
    rest: str
    grpc: str


def run(*command: str | Path, timeout: float = 300, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def inspect(kind: str, name: str) -> dict:
    return json.loads(run("docker", kind, "inspect", name).stdout)[0]


def execute(container: str, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    return run("docker", "exec", *(["--user", user] if user else []), container, *command, check=False)


def until(condition: Callable[[], object], what: str, container: str) -> None:
    """Wait until a condition of a container holds."""
    try:
        wait_until(condition)
    except AssertionError:
        logs = run("docker", "logs", "--tail", "50", container, check=False)
        pytest.fail(f"not {what} within {HANG} s; its log:\n{logs.stdout}{logs.stderr}")


def is_healthy(container: str) -> bool:
    return inspect("container", container)["State"]["Health"]["Status"] == "healthy"


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Run compose for this project on a running engine."""
    run(ROOT / "tests/containers/engine.sh", timeout=1200)
    override = tmp_path_factory.mktemp("compose") / "override.yml"
    override.write_text(OVERRIDE)
    current = run("docker", "compose", "version", check=False).returncode == 0
    command = ["docker", "compose"] if current else ["docker-compose"]
    return [*command, "-p", PROJECT, "-f", str(ROOT / "docker-compose.yml"), "-f", str(override)]


@pytest.fixture(scope="session")
def image(compose: list[str]) -> str:
    run(*compose, "build", "server", timeout=900)
    return IMAGE


@pytest.fixture(scope="session")
def server(compose: list[str], image: str) -> Iterator[Server]:
    try:
        run(*compose, "up", "-d", "--no-build", "server", timeout=300)
        container = run(*compose, "ps", "-q", "server").stdout.strip()
        until(lambda: is_healthy(container), "healthy", container)
        rest, grpc = (run(*compose, "port", "server", port).stdout.strip() for port in ("8080", "50051"))
        yield Server(container, rest, grpc)
    finally:
        run(*compose, "down", "--volumes", "--remove-orphans", timeout=300)


def test_added_layers_are_small(image: str):
    """The image adds at most 300 MB to its base."""
    base, built = inspect("image", BASE), inspect("image", image)
    layers = base["RootFS"]["Layers"]
    assert built["RootFS"]["Layers"][: len(layers)] == layers
    added = built["Size"] - base["Size"]
    print(f"added to {BASE}: {added / 1e6:.0f} MB")
    assert added <= MAX_ADDED_BYTES


def test_answers_over_rest(server: Server):
    """The embedded multi-head model predicts giver, object and recipient over REST."""
    body = {"text": SENTENCE, "outputs": ["weights", "predictions"]}
    response = requests.post(f"http://{server.rest}/v1/models/multi-head:attend", json=body, timeout=HANG)
    assert response.status_code == 200, response.text
    [result] = response.json()["results"]
    assert result["tokens"] == SENTENCE.split()
    assert result["outputs"]["weights"]["shape"][-2:] == [7, 7]
    assert {each["name"]: each["label"] for each in result["predictions"]} == ANSWER


def test_answers_over_grpc(server: Server):
    """The embedded multi-head model gives the same predictions over gRPC, by the client."""
    with AttentionClient(server.grpc) as client:
        result = client.attend("multi-head", text=SENTENCE, outputs=["weights", "predictions"], timeout=HANG)
    assert result.weights.shape[-2:] == (7, 7)
    assert {each.name: each.label for each in result.predictions} == ANSWER


def test_the_page_is_in_the_image(server: Server):
    """`/` serves the page and every file that it loads."""
    index = requests.get(f"http://{server.rest}/", timeout=HANG)
    assert "<title>Attention, step by step</title>" in index.text
    loaded = re.findall(r'"(page/[^"]+)"', index.text)
    assert {Path(each).suffix for each in loaded} == {".js", ".css", ".html"}
    for path in loaded:
        assert requests.get(f"http://{server.rest}/{path}", timeout=HANG).ok, path


def test_ports_are_published_to_this_machine_only(server: Server):
    """By default ports are published on the loopback address only."""
    assert server.rest.startswith("127.0.0.1:")
    assert server.grpc.startswith("127.0.0.1:")


def test_process_has_no_privileges(server: Server):
    """The process is not root, has no capability, and cannot gain one."""
    lines = execute(server.container, "cat", "/proc/1/status").stdout.splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert set(status["Uid"] + status["Gid"]) == {"10001"}
    assert int(status["CapEff"][0], 16) == int(status["CapBnd"][0], 16) == 0
    assert status["NoNewPrivs"] == ["1"]


def test_root_is_read_only(server: Server):
    """The root file system is read-only, even for root; /tmp is writable."""
    refused = execute(server.container, "touch", "/opt/venv/written", user="0")
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    assert execute(server.container, "touch", "/tmp/written").returncode == 0


def test_there_is_no_torch(server: Server):
    """The image has neither torch nor pip."""
    for module in ("torch", "pip"):
        refused = execute(server.container, "python", "-c", f"import {module}")
        assert f"No module named '{module}'" in refused.stderr


def test_telemetry_of_onnxruntime_is_off(server: Server):
    """onnxruntime's telemetry, on by default, is off wherever the service's package is imported."""
    asked = "import attention_server, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert execute(server.container, "python", "-c", asked).stdout == "1\n"


def test_health_is_that_of_grpc(server: Server):
    """The container's health check calls grpc.health.v1, and a failing one makes the container unhealthy."""
    assert inspect("container", server.container)["Config"]["Healthcheck"]["Test"] == [
        *("CMD", "python", "-m", "attention_server.probe")
    ]
    assert is_healthy(server.container)
    refused = execute(server.container, "python", "-m", "attention_server.probe", "127.0.0.1:1")
    assert refused.returncode == 1
    assert "127.0.0.1:1: UNAVAILABLE" in refused.stderr


def test_the_sbom_lists_the_packages_of_the_image(server: Server):
    """The SBOM in the image lists the installed Python packages by version, and the service itself."""
    sbom = json.loads(execute(server.container, "cat", "/opt/venv/share/sbom/attention-service.cdx.json").stdout)
    asked = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    found = json.loads(execute(server.container, "python", "-c", asked).stdout)
    installed = {canonicalize_name(name): version for name, version in found}
    assert installed.pop("attention-service") == sbom["metadata"]["component"]["version"]
    listed = [each for each in sbom["components"] if each["purl"].startswith("pkg:pypi/")]
    assert installed == {canonicalize_name(each["name"]): each["version"] for each in listed}


def test_mutual_tls_and_tokens(image: str, tmp_path: Path):
    """With certificates and tokens mounted, the container is healthy, logs no warning, and requires credentials."""
    tmp_path.chmod(0o755)
    pems = make_pems(tmp_path / "pems")
    for file in pems.cert.parent.iterdir():
        file.chmod(0o644)
    made = run("docker", "run", "--rm", "--entrypoint", "attention-token", image, "search")
    (pems.cert.parent / "tokens").write_text(made.stdout)
    settings = {
        "TLS_CERT": "cert.pem",
        "TLS_KEY": "key.pem",
        "TLS_CLIENT_CA": "ca.pem",
        "TOKENS": "tokens",
    }
    flags = [flag for name, file in settings.items() for flag in ("--env", f"ATTENTION_{name}=/secrets/{file}")]
    mount = f"{pems.cert.parent}:/secrets:ro"
    ports = ["--publish", "127.0.0.1::50051", "--health-interval", "1s"]
    container = run("docker", "run", "--detach", "--read-only", "--volume", mount, *ports, *flags, image).stdout.strip()
    try:
        until(lambda: is_healthy(container), "healthy", container)
        address = run("docker", "port", container, "50051").stdout.split()[0]
        credentials = channel.tls(pems.ca, pems.client_cert, pems.client_key)
        with AttentionClient(address, credentials=credentials, token=made.stderr.strip()) as client:
            assert "multi-head" in {model.name for model in client.models()}
        with AttentionClient(address, credentials=credentials) as client, pytest.raises(Unauthenticated):
            client.models()
        logs = run("docker", "logs", container)
        assert "[warning" not in logs.stdout + logs.stderr
    finally:
        run("docker", "rm", "--force", container)


def test_sigterm_ends_it_with_0(image: str):
    """`docker stop` ends a container of `docker run` at once, with exit status 0."""
    container = run("docker", "run", "--detach", "--read-only", "--cap-drop", "ALL", image).stdout.strip()
    try:
        until(lambda: "ready rest=" in run("docker", "logs", container).stdout, "ready", container)
        run("docker", "stop", "--time", "30", container)
        state = inspect("container", container)["State"]
    finally:
        run("docker", "rm", "--force", container)
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_help(image: str):
    """The arguments after the image's name are the server's options."""
    assert "--rest-port" in run("docker", "run", "--rm", image, "--help").stdout


def test_metrics_have_a_profile(compose: list[str]):
    """Prometheus and Grafana are in a compose profile, published on the loopback address."""
    config = yaml.safe_load(run(*compose, "--profile", "metrics", "config").stdout)
    for name, port in (("prometheus", 9090), ("grafana", 3000)):
        service = config["services"][name]
        assert service["profiles"] == ["metrics"]
        assert f"127.0.0.1:{port}" in str(service["ports"]) or "host_ip: 127.0.0.1" in yaml.safe_dump(service["ports"])


def test_gpu_service_reserves_a_device(compose: list[str]):
    """Compose's GPU profile has another base, onnxruntime-gpu and an NVIDIA device, without a fallback to the CPU."""
    config = yaml.safe_load(run(*compose, "--profile", "gpu", "config").stdout)
    server, gpu = config["services"]["server"], config["services"]["server-gpu"]
    assert "profiles" not in server
    assert gpu["profiles"] == ["gpu"]
    assert gpu["build"]["args"]["EXTRA"] == "server-gpu"
    assert gpu["build"]["args"]["BASE"].startswith("nvidia/cuda:")
    assert gpu["environment"]["ATTENTION_DEVICE"] == "cuda"
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
