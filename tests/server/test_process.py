"""The process: its imports, its start and its stop."""

import os
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, ROOT, SERVER, clean_env, run_server, start_server, wait_until

from tests.observability.conftest import metrics_of

# The beginning of a request with an endless body.
HALF_SENT = b"POST /v1/models/dot:attend HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{"


# --- requirements ---------------------------------------------------------------------------------------------------


def test_no_threads_of_numpy():
    """NumPy computes in the thread that calls it: the slots alone say how much runs at once."""
    code = "import attention_server, numpy, os; print(len(os.listdir('/proc/self/task')))"
    found = subprocess.run([SERVER.with_name("python"), "-c", code], env=clean_env(), capture_output=True, check=True)
    assert int(found.stdout) == 1


def test_nothing_of_torch():
    """The server's environment has no torch, nor the exporter's libraries."""
    for module in ("torch", "onnx", "onnxscript"):
        done = subprocess.run(
            [ROOT / ".venv/bin/python", "-c", f"import {module}"], capture_output=True, text=True, check=False
        )
        assert f"No module named '{module}'" in done.stderr


def test_the_embedded_models(tmp_path):
    """Without --models, and wherever it is started, the server serves the models that it ships with."""
    with subprocess.Popen(
        [SERVER, "--rest-port", "0", "--grpc-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=clean_env(),
    ) as process:
        try:
            line = process.stdout.readline()
            address = line.split("rest=")[1].split()[0]
            models = requests.get(f"http://{address}/v1/models", timeout=HANG).json()["models"]
            names = {model["name"] for model in models}
            assert names == {path.name for path in (ROOT / "models").iterdir() if path.is_dir()}
            process.terminate()
            assert process.wait(HANG) == 0
        finally:
            process.kill()


# --- the start -------------------------------------------------------------------------------------------------------


def test_stdout_is_one_line(dot_only):
    """On stdout stands the one line that says where it listens; logs are on stderr."""
    with start_server(dot_only) as server:
        requests.get(f"{server.url}/v1/models/nobody", timeout=HANG)
        server.process.terminate()
        assert server.process.stdout.read() == ""
        assert "ready" in server.log


@pytest.mark.parametrize("flag", ["--rest-port", "--grpc-port"])
def test_a_port_that_is_taken(dot_only, flag):
    """A port in use is reported in one line, with the address, and the process ends with 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--rest-port": 0, "--grpc-port": 0} | {flag: port}
        done = run_server("--models", dot_only, *(word for pair in ports.items() for word in pair))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert f"127.0.0.1:{port}" in lines[-1]
    assert lines[-1].startswith("attention-server: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_another_server_on_the_port(dot_only):
    """Two servers never share a port."""
    with start_server(dot_only) as server:
        for flag, address in (("--rest-port", server.rest), ("--grpc-port", server.grpc)):
            other = {"--rest-port": "0", "--grpc-port": "0"} | {flag: address.split(":")[1]}
            done = run_server("--models", dot_only, *(word for pair in other.items() for word in pair))
            assert done.returncode == 1
            assert address in done.stderr


def test_an_address_that_is_not_ours(dot_only):
    """An address of another machine is told in one line."""
    done = run_server("--models", dot_only, "--host", "192.0.2.1", "--rest-port", 0, "--grpc-port", 0)
    assert done.returncode == 1
    assert "192.0.2.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_is_unknown(dot_only):
    """A host name that cannot be resolved is told in one line."""
    done = run_server("--models", dot_only, "--host", "nowhere.invalid", "--rest-port", 0, "--grpc-port", 0)
    assert done.returncode == 1
    assert "nowhere.invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_ipv6(dot_only):
    """An IPv6 address is listened on, and written with brackets."""
    with start_server(dot_only, "--host", "::1") as server:
        assert server.rest.startswith("[::1]:")
        assert server.grpc.startswith("[::1]:")
        assert requests.get(f"{server.url}/readyz", timeout=HANG).status_code == 200


def test_cuda_where_there_is_none(dot_only):
    """A missing GPU that the settings ask for is an error at the start, with the setting to change."""
    done = run_server("--models", dot_only, "--device", "cuda", "--rest-port", 0, "--grpc-port", 0)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "cuda" in line
    assert "device=cpu" in line


# --- the stop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("grpc", signal.SIGTERM), ("rest-json", signal.SIGINT)])
def test_a_stop_finishes_what_was_accepted(dot_only, tmp_path_factory, connect, name, number):
    """On a signal, requests that run and requests that wait are answered; then the process ends with 0."""
    held = tmp_path_factory.mktemp("stop") / "held"
    command = [SERVER.with_name("python"), ROOT / "tests/held_server.py", held]
    flags = ("--slots", 1, "--grace", HANG, "--max-wait", HANG)
    with start_server(dot_only, *flags, command=command) as server, ThreadPoolExecutor(3) as callers:
        attend = connect(name, server.rest, server.grpc).attend
        held.touch()
        answers = [callers.submit(attend, "dot", query=np.ones((1, 1), np.float32)) for _ in range(3)]
        wait_until(lambda: metrics_of(server)("attention_queue_depth") == 2)
        assert metrics_of(server)("attention_slots_busy") == 1
        os.kill(server.process.pid, number)
        wait_until(lambda: "stopping" in server.log)
        held.unlink()
        for answer in answers:
            assert answer.result(HANG)["results"]
        assert server.process.wait(HANG) == 0


def test_a_stop_while_models_load(dot_only, tmp_path):
    """On a signal while models load, the process ends with 0 within its grace, and does not load the models first."""
    held = tmp_path / "held"
    held.touch()
    command = [SERVER.with_name("python"), ROOT / "tests/held_server.py", held]
    command += ["--models", dot_only, "--rest-port", 0, "--grpc-port", 0, "--grace", 1]
    with subprocess.Popen(list(map(str, command)), env=clean_env(), stdout=subprocess.PIPE, text=True) as process:
        wait_until((tmp_path / "held.reached").exists)
        process.terminate()
        assert process.wait(HANG) == 0
        assert "ready" not in process.stdout.read()


def test_a_stop_does_not_wait_for_idle_connections(dot_only, connect):
    """Connections kept alive by clients do not hold up a stop."""
    with start_server(dot_only, "--grace", 10 * HANG) as server, requests.Session() as session:
        session.get(f"{server.url}/readyz", timeout=HANG)
        connect("grpc", server.rest, server.grpc).attend("dot", query=np.ones((1, 1), np.float32))
        server.process.terminate()
        assert server.process.wait(HANG) == 0


def test_a_stop_refuses_on_both_ports_at_once(dot_only):
    """While a request that was accepted is finished, neither port accepts another connection."""
    with start_server(dot_only, "--grace", 10 * HANG) as server:
        host, port = server.rest.split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(HALF_SENT)
            wait_until(lambda: metrics_of(server)("attention_requests_in_flight", method="Attend") == 1)
            server.process.terminate()
            wait_until(lambda: not accepts(server.rest) and not accepts(server.grpc))
            assert server.process.poll() is None
        assert server.process.wait(HANG) == 0


def accepts(address: str) -> bool:
    """Return whether a connection is accepted."""
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=HANG).close()
    except OSError:
        return False
    return True


def test_a_stop_that_goes_on_accepting(dot_only, connect):
    """Not ready on both ports, a server that stops goes on accepting for as long as was set."""
    with (
        start_server(dot_only, "--stop-accepting-after", 10 * HANG) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        check = health_pb2_grpc.HealthStub(channel).Check
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        assert ready(b"") == b"\x08\x01"
        server.process.terminate()
        wait_until(lambda: requests.get(f"{server.url}/readyz", timeout=HANG).status_code == 503)
        assert requests.get(f"{server.url}/healthz", timeout=HANG).status_code == 200
        wait_until(lambda: check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING)
        assert ready(b"") == b""
        for name in ("grpc", "rest-json"):
            transport = connect(name, server.rest, server.grpc)
            assert transport.attend("dot", query=np.ones((1, 1), np.float32))["results"]
        end_at_once(server)
    with start_server(dot_only, "--stop-accepting-after", 0.2) as server:
        server.process.terminate()
        assert server.process.wait(HANG) == 0


def test_a_second_signal(dot_only):
    """A second signal ends the process at once."""
    with start_server(dot_only, "--stop-accepting-after", 10 * HANG) as server:
        server.process.terminate()
        wait_until(lambda: requests.get(f"{server.url}/readyz", timeout=HANG).status_code == 503)
        end_at_once(server)


def end_at_once(server):
    """Send a second signal, which ends the process."""
    server.process.terminate()
    assert server.process.wait(HANG) == -signal.SIGTERM
    server.process.returncode = 0  # the status that `start_server` expects of a process that has ended


def test_a_stop_cuts_off_after_the_grace(dot_only):
    """Requests that still run after the grace are cut off on both ports: a stop ends."""
    with start_server(dot_only, "--grace", 0.2) as server, grpc.insecure_channel(server.grpc) as channel:
        host, port = server.rest.split(":")
        never = threading.Event()
        with socket.create_connection((host, int(port))) as half:
            half.sendall(HALF_SENT)
            call = channel.stream_unary("/attention.v1.AttentionService/Attend").future(iter(never.wait, True))
            wait_until(lambda: metrics_of(server)("attention_requests_in_flight", method="Attend") == 2)
            server.process.terminate()
            assert server.process.wait(HANG) == 0
            never.set()
            assert call.code() is grpc.StatusCode.UNAVAILABLE
