"""TLS and mutual TLS on both ports, with real certificates; renewed without a restart."""

import re
import socket
import ssl
import subprocess
import sys

import grpc
import numpy as np
import pytest
import requests
from attention_client import AttentionClient, Unavailable
from attention_client.wire import channel
from attention_server.auth.callers import Callers, digest_of, new_token
from attention_server.auth.certificates import Certificates
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, clean_env, run_server, start_server, wait_until

from tests.local_server import local_server
from tests.security.conftest import Pems, make_pems, make_token

pytestmark = pytest.mark.both_grpc_servers

QUERY = np.ones((1, 2), np.float32)


def tls_flags(pems: Pems, *, mutual: bool = False) -> list[object]:
    return ["--tls-cert", pems.cert, "--tls-key", pems.key, *(["--tls-client-ca", pems.ca] if mutual else [])]


def https(server, path: str, pems: Pems, *, certificate: bool = False, **options) -> requests.Response:
    cert = (str(pems.client_cert), str(pems.client_key)) if certificate else None
    return requests.get(f"https://{server.rest}{path}", verify=str(pems.ca), cert=cert, timeout=HANG, **options)


@pytest.fixture(scope="module")
def server(dot_only, grpc_server, pems):
    with start_server(dot_only, *tls_flags(pems)) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(dot_only, grpc_server, pems):
    with start_server(dot_only, *tls_flags(pems, mutual=True)) as running:
        yield running


def test_tls_on_both_ports(server, pems):
    """Both ports speak TLS, to whoever trusts the authority, and only TLS."""
    assert https(server, "/v1/models", pems).status_code == 200
    with AttentionClient(server.grpc, credentials=channel.tls(pems.ca)) as client:
        assert client.attend("dot", query=QUERY).output.shape == (1, 2)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{server.rest}/v1/models", timeout=HANG)
    with AttentionClient(server.grpc, timeout=HANG) as client, pytest.raises(Unavailable):
        client.models()


def test_the_metrics_tell_when_the_certificate_expires(server, pems):
    """The metric is the end of the validity that openssl reads in the certificate."""
    shown = https(server, "/metrics", pems).text
    (value,) = re.findall(r"^attention_certificate_expiry_timestamp_seconds (\S+)$", shown, re.MULTILINE)
    command = ["openssl", "x509", "-in", pems.cert, "-noout", "-enddate"]
    end = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().removeprefix("notAfter=")
    assert float(value) == ssl.cert_time_to_seconds(end)


def test_who_does_not_trust_the_authority_says_nothing(server, tmp_path):
    """A caller that trusts another authority breaks off."""
    other = make_pems(tmp_path / "other")
    with pytest.raises(requests.exceptions.SSLError):
        https(server, "/v1/models", other)
    trusting = channel.tls(other.ca)
    with AttentionClient(server.grpc, credentials=trusting, timeout=HANG) as client, pytest.raises(Unavailable):
        client.models()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls(server, version):
    """Versions of TLS before 1.2 are refused on both ports."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    for address in (server.rest, server.grpc):
        host, port = address.split(":")
        refused = pytest.raises((ssl.SSLError, ConnectionResetError))
        with socket.create_connection((host, int(port)), timeout=HANG) as connection, refused:
            context.wrap_socket(connection)


def test_mutual_tls(mutual, pems, tmp_path):
    """A caller needs a certificate of the authority on both ports; HTTP's liveness and readiness need none."""
    other = make_pems(tmp_path / "other")
    assert https(mutual, "/v1/models", pems, certificate=True).status_code == 200
    assert https(mutual, "/v1/models", pems).status_code == 401
    assert https(mutual, "/healthz", pems).status_code == https(mutual, "/readyz", pems).status_code == 200
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(
            f"https://{mutual.rest}/v1/models",
            verify=str(pems.ca),
            cert=(str(other.client_cert), str(other.client_key)),
            timeout=HANG,
        )
    known = channel.tls(pems.ca, pems.client_cert, pems.client_key)
    with AttentionClient(mutual.grpc, credentials=known) as client:
        assert client.attend("dot", query=QUERY).output.shape == (1, 2)
        memory = client.create_memory("dot", key=QUERY)
        listed = https(mutual, "/v1/models/dot/memories", pems, certificate=True).json()["memories"]
        assert [each["id"] for each in listed] == [memory.id]
    for unknown in (channel.tls(pems.ca), channel.tls(pems.ca, other.client_cert, other.client_key)):
        with AttentionClient(mutual.grpc, credentials=unknown, timeout=HANG) as client, pytest.raises(Unavailable):
            client.models()


@pytest.mark.parametrize("authority", [False, True])
def test_renewed_certificates(dot_only, tmp_path, authority):
    """New certificates are used for the next connections, a new authority of callers too; broken ones are not."""
    pems = make_pems(tmp_path / "pems")
    with start_server(dot_only, *tls_flags(pems, mutual=authority)) as server:

        def serves() -> bool:
            known = channel.tls(pems.ca, pems.client_cert, pems.client_key)
            try:
                with AttentionClient(server.grpc, credentials=known, timeout=HANG) as client:
                    client.models()
                return https(server, "/v1/models", pems, certificate=True).status_code == 200
            except (requests.RequestException, Unavailable):
                return False

        assert serves()
        good = pems.key.read_bytes()
        pems.key.write_bytes(b"broken")
        wait_until(lambda: serves() and "cannot be used" in server.log)
        pems.key.write_bytes(good)
        make_pems(tmp_path / "pems")  # all files anew, of another authority
        wait_until(serves)
        assert "read again" in server.log


@pytest.mark.parametrize(
    ("token", "mutual", "name"),
    [(False, False, "127.0.0.1"), (False, True, "job-7"), (True, False, "search"), (True, True, "search")],
)
def test_callers_by_name(dot_only, pems, tmp_path, token, mutual, name):
    """A call is its token's, else its certificate's, else its host's: the same over both ports."""
    tokens, secret = tmp_path / "tokens.toml", new_token()
    tokens.write_text(f'[search]\nsha256 = "{digest_of(secret)}"\n')
    certificates = Certificates(pems.cert, pems.key, pems.ca if mutual else None)
    seen = []
    with local_server(dot_only, callers=Callers(tokens if token else None), certificates=certificates) as server:
        submit = server.service.submit
        server.service.submit = lambda request, call, admitted=None: (
            seen.append(call.caller) or submit(request, call, admitted)
        )
        known = channel.tls(pems.ca, pems.client_cert, pems.client_key)
        with AttentionClient(server.grpc, credentials=known, token=secret) as client:
            client.attend("dot", query=QUERY)
        requests.post(
            f"https://{server.rest}/v1/models/dot:attend",
            json={"query": [[1.0]]},
            headers={"authorization": f"Bearer {secret}"},
            verify=str(pems.ca),
            cert=(str(pems.client_cert), str(pems.client_key)),
            timeout=HANG,
        ).raise_for_status()
    assert seen == [name, name]


def test_health_over_tls(server, mutual, pems):
    """A container's probe knows that both serve, with a certificate of its own or without."""
    for running in (server, mutual):
        env = {"ATTENTION_TLS_CERT": str(pems.cert), "ATTENTION_REST_PORT": running.rest.rpartition(":")[2]}
        command = [sys.executable, "-m", "attention_server.probe"]
        done = subprocess.run(command, env=clean_env(env), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    with grpc.secure_channel(server.grpc, channel.tls(pems.ca)) as secure:
        answer = health_pb2_grpc.HealthStub(secure).Check(health_pb2.HealthCheckRequest(), timeout=HANG)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_command_speaks_tls(dot_only, pems, tmp_path):
    """`attention-client` takes a token, an authority and a certificate, as flags or variables."""
    token, lines = make_token("me")
    (tmp_path / "tokens.toml").write_text(lines)
    flags = ["--tokens", tmp_path / "tokens.toml", *tls_flags(pems, mutual=True)]
    with start_server(dot_only, *flags) as server:

        def models(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
            program = "from attention_client.cli import main; main()"
            command = [sys.executable, "-c", program, *map(str, arguments), "models", "--target", server.grpc]
            return subprocess.run(command, env=clean_env(env), capture_output=True, text=True, check=False)

        mine = ["--ca", pems.ca, "--cert", pems.client_cert, "--key", pems.client_key]
        assert "dot" in models(*mine, "--token", token).stdout
        variables = {
            f"ATTENTION_{str(name)[2:].upper()}": str(value) for name, value in zip(mine[::2], mine[1::2], strict=True)
        }
        assert "dot" in models(**variables, ATTENTION_TOKEN=token).stdout
        refused = models(*mine)
        assert refused.returncode == 1
        assert "Bearer TOKEN" in refused.stderr
        assert "go together" in models("--ca", pems.ca, "--cert", pems.client_cert).stderr


@pytest.mark.native_grpc("the certificates are read before either port listens")
@pytest.mark.parametrize("missing", ["--tls-cert", "--tls-key"])
def test_half_of_a_pair(dot_only, pems, missing):
    """A certificate without its key, or a key without its certificate, is refused at the start."""
    flags = tls_flags(pems)
    at = flags.index(missing)
    done = run_server("--models", dot_only, "--rest-port", 0, "--grpc-port", 0, *flags[:at], *flags[at + 2 :])
    assert done.returncode == 1
    assert "both --tls-cert and --tls-key" in done.stderr


@pytest.mark.native_grpc("the certificates are read before either port listens")
@pytest.mark.parametrize("wrong", ["cert", "key", "ca", "another key"])
def test_certificates_that_cannot_be_used(dot_only, pems, tmp_path, wrong):
    """A file that is no certificate, or a key that is not its key, is refused at the start, without a traceback."""
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    used = Pems(**vars(pems))
    if wrong == "another key":
        used.key = pems.client_key
    else:
        setattr(used, wrong, bad)
    done = run_server("--models", dot_only, "--rest-port", 0, "--grpc-port", 0, *tls_flags(used, mutual=True))
    assert done.returncode == 1
    assert ".pem" in done.stderr
    assert "Traceback" not in done.stderr


# --- warnings at the start ---

EVERYTHING = "whoever reaches this address may do everything"
CLEAR = "tokens travel in the clear"


@pytest.mark.native_grpc("the settings are warned of before either port listens")
def test_warnings_at_the_start(dot_only, pems, tmp_path):
    """To listen beyond this machine without credentials, or with tokens in the clear, is warned of; else nothing is."""
    _, lines = make_token("me")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(lines)
    for flags, warned in [
        (["--host", "127.0.0.1"], None),
        (["--host", "127.0.0.1", "--tokens", tokens], None),
        (["--host", "0.0.0.0"], EVERYTHING),
        (["--host", "0.0.0.0", *tls_flags(pems)], EVERYTHING),
        (["--host", "0.0.0.0", "--tokens", tokens], CLEAR),
        (["--host", "0.0.0.0", "--tokens", tokens, *tls_flags(pems)], None),
        (["--host", "0.0.0.0", *tls_flags(pems, mutual=True)], None),
    ]:
        with start_server(dot_only, *flags) as server:
            assert [each for each in (EVERYTHING, CLEAR) if each in server.log] == ([warned] if warned else []), flags
            assert ("[warning" in server.log) == (warned is not None)
