"""Clients in Go, Java and C++ by Debian's gRPC, and Java's own HTTP client with its defaults."""

import subprocess

import pytest

from tests.clients.conftest import HERE, PROTO_PATH, SCENARIOS, Program, go_through, read_rest

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    out = tmp_path_factory.mktemp("toolchains")
    command = [HERE / "toolchains.sh", out, *PROTO_PATH]
    built = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    java = ["java", "-XX:TieredStopAtLevel=1", "-cp", (out / "java/classpath").read_text().strip()]
    return {
        "go": Program([out / "go/main"], env={"GRPC_GO_RETRY": "on"}),
        "java": Program([*java, "Client"]),
        "java http": Program([*java, "Http"], rest=True, read=read_rest),
        "cpp": Program([out / "cpp/client"]),
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", ["go", "java", "cpp"])
def test_a_client_goes_through_the_scenarios(server, programs, name, scenario):
    """One call, a stream, 30 MiB, a deadline, a cancellation, an error's field, and a refusal that is repeated."""
    go_through(programs[name], scenario, server)


@pytest.mark.parametrize("scenario", ["unary", "stream", "deadline", "cancel", "errors"])
def test_javas_own_client(server, programs, scenario):
    """Java's HTTP client offers HTTP/2 with its first request, as its default has it, and is answered by HTTP/1.1."""
    go_through(programs["java http"], scenario, server)
