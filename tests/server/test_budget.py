"""The account of bytes: shares of holders, and what is counted of requests and answers over each transport."""

import gzip
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_server.auth.callers import Callers
from attention_server.budget.account import SHARE, Account
from attention_server.budget.trimmer import Trimmer
from attention_server.codecs.parsed_size import ManyFields, parsed_bytes
from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.domain.tokenization import HELD_TOKEN_BYTES, TokenizeInput, TokenizeRequest
from attention_server.errors import Full, TooLarge
from attention_server.rest.connection import PIPELINED
from attention_server.service.tokenization import tokenize_job
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, bearer, wait_until

from tests.http2.peer import OPENING, data, fields, headers
from tests.local_server import LocalServer, local_server
from tests.refusals import refused_by_grpc
from tests.security.peers import all_of

MIB = 2**20
BUDGET = 32  # MiB
ATTEND = "/attention.v1.AttentionService/Attend"
PATH = "/v1/models/dot:attend"


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("dot")
    (folder / "dot").symlink_to(repository / "dot")
    tokens = folder / "tokens.toml"
    names = ("greedy", "modest")
    tokens.write_text("".join(f'[{name}]\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n' for name in names))
    with local_server(folder, callers=Callers(tokens), memory_budget_mib=BUDGET, max_message_mib=16) as running:
        yield running
        wait_until(lambda: not running.service.account.state().held)  # after all calls, nothing stays counted
        assert not running.service.account.state().running


def held(server: LocalServer) -> int:
    return server.service.account.state().held


def post(server: LocalServer, name: str, **sent) -> requests.Response:
    sent = sent or {"json": {"query": [[1.0]]}}
    more = sent.pop("headers", {})
    return requests.post(server.url + PATH, headers=bearer(name) | more, timeout=HANG, **sent)


def code(server: LocalServer, name: str, message: pb.AttendRequest | bytes) -> str:
    """Call Attend and return the code of the answer."""
    content = message if isinstance(message, bytes) else message.SerializeToString()
    with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            channel.unary_unary(ATTEND)(content, timeout=HANG, metadata=list(bearer(name).items()))
        except grpc.RpcError as error:
            refusal = refused_by_grpc(error)
            assert (refusal.code == "UNAVAILABLE") == (refusal.retry_after is not None)
            return refusal.code
    return "OK"


def weights(length: int) -> pb.AttendRequest:
    """Return a request of little, with an answer of length x length x 4 bytes."""
    query = pb.Tensor(data_type=pb.DATA_TYPE_FP32, shape=[length, 1], data=bytes(4 * length))
    return pb.AttendRequest(model="dot", inputs=[pb.Sequence(query=query)], outputs=[pb.OutputSpec(name="weights")])


@contextmanager
def peer_of(address: str, first: bytes) -> Iterator[socket.socket]:
    """A connection that takes next to nothing of its answers."""
    host, port = address.split(":")
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(HANG)
        peer.connect((host, int(port)))
        peer.sendall(first)
        yield peer


def head(name: str, length: int, *more: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "host: localhost", f"authorization: Bearer {name}", *more]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


# --- the account -----------------------------------------------------------------------------------------------------


def test_a_holder_of_much_is_refused_before_a_holder_of_little():
    """Alone a holder has SHARE / (SHARE + 1) of all; beside it another finds room, and the first has no more."""
    account = Account(1000)
    much = account.lease("much")
    with pytest.raises(TooLarge):
        much.grow(751)
    much.grow(750)
    with pytest.raises(Full):
        account.hold(1, "much")
    little = account.hold(187, "little")
    with pytest.raises(Full):
        account.hold(1, "little")
    assert account.state().refused == 3
    much.shrink(700)
    little.grow(300)
    assert SHARE * (1000 - account.state().held) >= 487


def test_a_lease_ends_with_its_last_user():
    """Bytes stay held while a thread works on them, though the caller has left; then all are given back."""
    account = Account(1000)
    lease = account.hold(100, "a")
    lease.retain()
    lease.move("b")
    lease.release()
    assert account.state().held == 100
    lease.release()
    assert account.state().held == 0
    account.hold(750, "b")  # nothing stays counted as its holder's


def test_only_as_many_computations_as_there_are_slots_need_memory_at_once():
    """Of the jobs that wait and run the largest are reserved for, as many as there are slots."""
    account = Account(1000, slots=2)
    lease = account.lease("a")
    for peak in (100, 300, 200, 50):
        account.begin_job(lease, 75, peak)
    assert account.state().running == 500
    with pytest.raises(Full):
        account.begin_job(lease, 1, 501)
    assert (account.state().held, account.state().running) == (300, 500)
    account.end_job(lease, 300)
    assert account.state().running == 300
    lease.release()
    for peak in (100, 200, 50):
        assert account.state().held == 300  # until the last job of the lease has ended
        account.end_job(lease, peak)
    assert (account.state().held, account.state().running) == (0, 0)


def test_what_a_message_becomes_is_counted_before_it_is_parsed():
    """Empty messages of two bytes count as what each becomes; a tensor's bytes add nothing to their own."""
    many = pb.AttendRequest(inputs=[pb.Sequence()] * 50_000).SerializeToString()
    assert parsed_bytes(many, pb.AttendRequest.DESCRIPTOR) > 50_000 * 100
    assert parsed_bytes(weights(50_000).SerializeToString(), pb.AttendRequest.DESCRIPTOR) < 4000
    with pytest.raises(ManyFields):
        parsed_bytes(many, pb.AttendRequest.DESCRIPTOR, 40_000)


def test_the_tokens_of_texts_are_counted_once():
    """A job names the bytes of its tokens, and whoever submits it holds these: making it holds none."""
    account = Account(1000)
    call = CallContext("id", lease=account.lease("a"))
    limits = Limits(sequences=1, scores_bytes=1, answer_bytes=2**20, memory_ttl=1.0)
    job = tokenize_job(TokenizeRequest("any", inputs=(TokenizeInput("one", "a"),)), None, limits, call)
    assert (job.size, account.state().held) == (4 * HELD_TOKEN_BYTES, 0)


def test_freed_memory_is_given_back_when_there_is_little_left():
    """The allocator is trimmed when over half of the memory is in use and much of it by no lease."""
    account, trimmed = Account(1000), []
    trimmer = Trimmer(account, 1000, lambda: trimmed.append(1))
    trimmer.look(500)
    assert not trimmed
    lease = account.hold(450, "a")
    trimmer.look(510)
    assert not trimmed
    lease.release()
    trimmer.look(510)
    assert trimmed


def test_freed_memory_is_given_back_at_rest():
    """Once nothing has run for two looks, what engines and the allocator keep is given back, and not again."""
    account, done = Account(2**40), []
    trimmer = Trimmer(account, 2**40, lambda: done.append("trim"), lambda: done.append("release"))
    lease = account.lease("a")
    account.begin_job(lease, 0, 1)
    for _ in range(3):
        trimmer.look(2**26)
    account.end_job(lease, 1)
    trimmer.look(2**26)
    assert not done
    trimmer.look(2**26)
    assert done == ["release", "trim"]
    trimmer.look(2**20)
    assert len(done) == 2


# --- requests and answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_half_sent_bodies_have_a_share(server, way):
    """Of a caller that sends bodies and ends none a further one is refused for a time; another caller is answered."""
    piece = bytes(3 * MIB)
    with ExitStack() as stack:
        for _ in range(4):
            if way == "rest":
                stack.enter_context(peer_of(server.rest, head("greedy", 8 * MIB) + piece))
            else:
                sent = [*fields(ATTEND), *bearer("greedy").items()]
                frames = [data(1, b"\0\0\x80\0\0")] + [data(1, piece[i : i + 16384]) for i in range(0, MIB, 16384)]
                stack.enter_context(peer_of(server.grpc, OPENING + headers(1, sent) + b"".join(frames)))
        least = (4 * 3 if way == "rest" else 4) * MIB
        wait_until(lambda: held(server) >= min(least, 20 * MIB))
        if way == "rest":
            refusal = post(server, "greedy", data=piece)
            assert refusal.status_code == 503
            assert refusal.headers["retry-after"]
        assert post(server, "modest").status_code == 200
        assert code(server, "modest", weights(2)) == "OK"
    wait_until(lambda: held(server) < MIB)
    assert post(server, "greedy").status_code == 200


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_answers_that_are_not_read_have_a_share(server, way):
    """An answer counts until it is on its way: a caller that reads none gets no more of them, and others do."""
    content = weights(1000).SerializeToString()  # 4 MB each
    more = ("content-type: application/x-protobuf", "accept: application/x-protobuf")
    with ExitStack() as stack:
        for _ in range(5):
            if way == "rest":
                stack.enter_context(peer_of(server.rest, head("greedy", len(content), *more) + content))
            else:
                framed = b"\0" + len(content).to_bytes(4, "big") + content
                sent = headers(1, [*fields(ATTEND), *bearer("greedy").items()])
                stack.enter_context(peer_of(server.grpc, OPENING + sent + data(1, framed, ("END_STREAM",))))
        wait_until(lambda: held(server) > 7 * MIB)
        assert code(server, "greedy", weights(1300)) == "UNAVAILABLE"
        assert code(server, "modest", weights(2)) == "OK"
        assert post(server, "modest").status_code == 200
    wait_until(lambda: held(server) < MIB)
    assert code(server, "greedy", weights(1000)) == "OK"


def test_what_a_body_inflates_to_is_held(server):
    """A compressed body is held as it inflates: of more than a caller may hold it is refused, with the setting."""
    packed = gzip.compress(b'{"query": [[' + b"1.0," * (14 * MIB // 4) + b"1.0]]}")
    assert len(packed) < 100_000
    refusal = post(server, "greedy", data=packed, headers={"content-encoding": "gzip"})
    assert refusal.status_code == 413
    assert "--memory-budget-mib" in refusal.json()["error"]["message"]
    assert post(server, "greedy").status_code == 200


@pytest.mark.parametrize("numbers", [500_000, 5])
def test_what_a_document_becomes_is_held(server, numbers):
    """The parsed form of JSON, many times its bytes, is held before it is made."""
    body = b'{"query": [[' + b"1," * numbers + b"1]]}"
    refusal = post(server, "greedy", data=body)
    assert refusal.status_code == (413 if numbers > 10_000 else 200)


def test_messages_within_a_message_are_held(server):
    """A message of empty messages, fifty times its bytes when parsed, is refused before."""
    many = b"\x1a\x00" * 200_000
    assert code(server, "greedy", many) == "RESOURCE_EXHAUSTED"
    sent = {"content-type": "application/x-protobuf"}
    assert post(server, "greedy", data=many, headers=sent).status_code == 413


def test_health_has_room_when_nothing_else_has(server):
    """While the account is full, liveness and readiness are answered on both ports, and requests are refused."""
    lease = server.service.account.lease("everyone")
    lease.add(2 * BUDGET * MIB)
    try:
        for path in ("/healthz", "/readyz", "/v2/health/ready"):
            assert requests.get(server.url + path, timeout=HANG).status_code == 200
        with grpc.insecure_channel(server.grpc) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=HANG).status == 1
        assert post(server, "modest").status_code == 503
        assert code(server, "modest", weights(1)) == "UNAVAILABLE"
        text = json.loads(post(server, "modest").text)["error"]["message"]
        assert "memory" in text
    finally:
        lease.release()
    assert post(server, "modest").status_code == 200


def test_a_stream_holds_its_answers(server):
    """Answers of a stream that nobody reads are held, and given back when the stream is gone."""
    stopping = threading.Event()

    def many() -> Iterator[bytes]:
        for i in range(12):
            yield pb.AttendStreamRequest(id=str(i), request=weights(1000))
        stopping.wait(HANG)

    with grpc.insecure_channel(server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = AttentionServiceStub(channel).AttendStream(many(), metadata=list(bearer("greedy").items()))
        wait_until(lambda: held(server) > 8 * MIB)
        assert code(server, "modest", weights(2)) == "OK"
        call.cancel()
        stopping.set()
    wait_until(lambda: held(server) < MIB)


def test_requests_far_ahead_of_their_answers_end_the_connection(server):
    """A peer may send PIPELINED requests ahead; one that sends thousands is disconnected before they are kept."""
    one = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for count in (PIPELINED, 5000):
        with peer_of(server.rest, one * (count - 1)) as peer:
            if count == PIPELINED:
                peer.sendall(one.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            answered = all_of(peer).count(b'"alive"')
            assert answered == count if count == PIPELINED else answered < 2 * PIPELINED
