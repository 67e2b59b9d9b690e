"""The token file, and the limits of its callers."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_server.auth import callers as callers_module
from attention_server.auth.callers import ANYONE, Callers, digest_of, new_token
from attention_server.errors import LimitReached
from attention_server.errors import Unauthenticated as NoCredentials
from serving import HANG, bearer, run_server, start_server, wait_until

from tests.local_server import IN_A_SLOT, local_server
from tests.refusals import refused_by_grpc
from tests.security.conftest import make_token, metadata

QUERY = {"query": [[1.0, 0.0]]}


# --- the file ---


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_tokens_change_while_it_runs(dot_only, tmp_path):
    """A token that is taken out is refused within seconds, a new one let in; a broken file changes nothing."""
    old, old_lines = make_token("old")
    new, new_lines = make_token("new")
    file = written(tmp_path / "tokens.toml", old_lines)
    with start_server(dot_only, "--tokens", file) as server:

        def knows(token: str) -> bool:
            return requests.get(f"{server.url}/v1/models", headers=bearer(token), timeout=HANG).status_code == 200

        assert (knows(old), knows(new)) == (True, False)
        written(file, old_lines + "[broken")
        wait_until(lambda: knows(old) and "cannot be used" in server.log)
        file.unlink()
        wait_until(lambda: knows(old) and "No such file" in server.log)
        written(file, new_lines)
        wait_until(lambda: (knows(old), knows(new)) == (False, True))
        assert old not in server.log
        assert new not in server.log


TOKEN = "0" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a", "table declaration"),
        ("[a]", "a.sha256"),
        ("a = 1", "a"),
        ('[a]\nsha256 = "secret-in-the-wrong-place"', "a.sha256"),
        (f'[a]\nsha256 = "{TOKEN}"\nright = ["attend"]', "a.right"),
        (f'[a]\nsha256 = "{TOKEN}"\nrights = ["all"]', "a.rights.0"),
        (f'[a]\nsha256 = "{TOKEN}"\nmax_in_flight = 0', "a.max_in_flight"),
        (f'[a]\nsha256 = "{TOKEN}"\nrequests_per_second = inf', "a.requests_per_second"),
        (f'[a]\nsha256 = "{TOKEN}"\n[b]\nsha256 = ["{TOKEN}"]', "same token"),
    ],
)
def test_files_that_say_nothing_usable(tmp_path, text, said):
    """An invalid file is refused with the field at fault, but without its content."""
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Callers(written(tmp_path / "tokens.toml", text))
    assert "secret-in" not in str(caught.value)


def test_a_server_does_not_start_on_a_broken_file(dot_only, tmp_path):
    """A file that cannot be used at the start ends it with a line that says why."""
    for file in (written(tmp_path / "broken.toml", "[a]"), tmp_path / "missing.toml"):
        done = run_server("--models", dot_only, "--rest-port", 0, "--grpc-port", 0, "--tokens", file)
        assert done.returncode == 1
        assert file.name in done.stderr
        assert "Traceback" not in done.stderr


def test_two_tokens_of_one_caller(tmp_path):
    """While one token takes another's place, both are the caller's, and share its limits."""
    first, second = new_token(), new_token()
    text = f'[a]\nsha256 = ["{digest_of(first)}", "{digest_of(second)}"]\nmax_in_flight = 1'
    callers = Callers(written(tmp_path / "tokens.toml", text))
    leave = callers.authenticate(f"Bearer {first}").begin_request()
    with pytest.raises(LimitReached):
        callers.authenticate(f"bearer {second}").begin_request()
    leave()
    callers.authenticate(f"bearer {second}").begin_request()


def test_without_a_file():
    """Without a token file every caller is anonymous and has every right."""
    assert Callers().authenticate(None) is ANYONE


def test_every_token_is_compared(tmp_path, monkeypatch):
    """A comparison takes the same time wherever tokens differ, and each is compared, whoever is found."""
    compared = []
    real = callers_module.hmac.compare_digest
    monkeypatch.setattr(callers_module.hmac, "compare_digest", lambda *both: compared.append(both) or real(*both))
    tokens = [new_token() for _ in range(5)]
    lines = (f'[c{i}]\nsha256 = "{digest_of(token)}"\n' for i, token in enumerate(tokens))
    callers = Callers(written(tmp_path / "tokens.toml", "".join(lines)))
    assert callers.authenticate(f"Bearer {tokens[0]}").name == "c0"
    assert len(compared) == 5
    with pytest.raises(NoCredentials):
        callers.authenticate(f"Bearer {new_token()}")
    assert len(compared) == 10


# --- limits ---


@pytest.mark.parametrize("port", ["rest", "grpc"])
def test_requests_in_flight(dot_only, tmp_path, port):
    """A caller over its limit is refused with a time to retry; another caller is not."""
    greedy, modest = new_token(), new_token()
    lines = f'[greedy]\nsha256 = "{digest_of(greedy)}"\nmax_in_flight = 1\n[modest]\nsha256 = "{digest_of(modest)}"\n'
    callers = Callers(written(tmp_path / "tokens.toml", lines))
    with local_server(dot_only, slots=3, predicted=IN_A_SLOT, callers=callers) as server, ThreadPoolExecutor(1) as pool:
        ask = {"rest": attend_by_rest, "grpc": attend_by_grpc}[port]
        server.gate.close()
        first = pool.submit(ask, server, greedy)
        assert server.gate.arrived.wait(HANG)
        assert ask(server, greedy) == {"rest": ("429", True), "grpc": ("UNAVAILABLE", True)}[port]
        other = threading.Thread(target=ask, args=(server, modest))
        other.start()
        wait_until(lambda: server.gate.runs == 2)
        server.gate.open()
        other.join()
        assert first.result(HANG)[0] == {"rest": "200", "grpc": "OK"}[port]
        wait_until(lambda: ask(server, greedy)[0] == first.result()[0])  # its place is given back


def attend_by_rest(server, token: str) -> tuple[str, bool]:
    response = requests.post(f"{server.url}/v1/models/dot:attend", json=QUERY, headers=bearer(token), timeout=HANG)
    return str(response.status_code), "retry-after" in response.headers


def attend_by_grpc(server, token: str) -> tuple[str, bool]:
    request = pb.AttendRequest(model="dot")
    request.inputs.add().query.CopyFrom(pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[1, 1], data=bytes(4)))
    with grpc.insecure_channel(server.grpc) as channel:
        method = channel.unary_unary("/attention.v1.AttentionService/Attend")
        try:
            method(request.SerializeToString(), metadata=metadata(token), timeout=HANG)
        except grpc.RpcError as error:
            return error.code().name, refused_by_grpc(error).retry_after is not None
    return "OK", False


def test_requests_a_second(tmp_path, monkeypatch):
    """A caller sends as many requests at once as it may a second, and then at that rate."""
    token, now = new_token(), [100.0]
    monkeypatch.setattr(callers_module.time, "monotonic", lambda: now[0])
    lines = f'[a]\nsha256 = "{digest_of(token)}"\nrequests_per_second = 4\n'
    caller = Callers(written(tmp_path / "tokens.toml", lines)).authenticate(f"Bearer {token}")
    for _ in range(4):
        caller.begin_request()()
    with pytest.raises(LimitReached, match="4 requests a second") as caught:
        caller.begin_request()
    assert caught.value.retry_after == pytest.approx(0.25)
    now[0] += 0.25
    caller.begin_request()()
    with pytest.raises(LimitReached):
        caller.begin_request()
    now[0] += 60  # unused requests do not accumulate
    for _ in range(4):
        caller.begin_request()()
    with pytest.raises(LimitReached):
        caller.begin_request()


@pytest.mark.parametrize(("rate", "at_once"), [(0.5, 1), (1, 1), (3, 3), (10, 10)])
def test_not_one_request_more_than_the_rate(tmp_path, monkeypatch, rate, at_once):
    """At the start, after a pause and when the time has come: not one request more or fewer than the rate."""
    token, now = new_token(), [100.0]
    monkeypatch.setattr(callers_module.time, "monotonic", lambda: now[0])
    lines = f'[a]\nsha256 = "{digest_of(token)}"\nrequests_per_second = {rate}\n'
    caller = Callers(written(tmp_path / "tokens.toml", lines)).authenticate(f"Bearer {token}")

    def admitted() -> int:
        """Send requests until one is refused, and return how many were not."""
        for count in range(100):
            try:
                caller.begin_request()()
            except LimitReached:
                return count
        return 100

    assert admitted() == at_once
    now[0] += 0.99 / rate
    assert admitted() == 0
    now[0] += 0.02 / rate
    assert admitted() == 1
    now[0] += 3600
    assert admitted() == at_once


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_not_one_request_more_at_once(tmp_path, limit):
    """So many requests are in flight at once as the limit says, and with each that ends one more may come."""
    token = new_token()
    lines = f'[a]\nsha256 = "{digest_of(token)}"\nmax_in_flight = {limit}\n'
    caller = Callers(written(tmp_path / "tokens.toml", lines)).authenticate(f"Bearer {token}")
    ends = [caller.begin_request() for _ in range(limit)]
    for end in ends:
        with pytest.raises(LimitReached, match=f"{limit} requests in flight"):
            caller.begin_request()
        end()
        caller.begin_request()
    with pytest.raises(LimitReached):
        caller.begin_request()
