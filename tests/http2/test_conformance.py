"""HTTP/2 by RFC 9113: a frame that breaks a rule ends the connection, the stream, or nothing.

Each case sends its frames behind the preface and a SETTINGS frame, and then a call on a stream of its own. The outcome
is "connection CODE" for a GOAWAY, "closed" where the connection is closed without one, "stream CODE" for a RST_STREAM,
and "valid" or "ignored" where neither comes, for frames that the RFC allows, or not; the call is then answered.
"""

from dataclasses import dataclass

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
)

from tests.http2.peer import OPENING, PREFACE, block, connected, data, fields, headers, message, raw, reset

CODES = dict(
    enumerate(
        (
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
        )
    )
)
LAST = 2**30 + 1  # the stream of the call behind each case
MOST = 2**31 - 1
END = ("END_HEADERS", "END_STREAM")
DATA_, HEADERS_, PRIORITY_, RST_, SETTINGS_, PUSH_, PING_, GOAWAY_, WINDOW_, CONTINUATION_ = range(10)


@dataclass(frozen=True)
class Case:
    """Frames and the outcome.

    Attributes:
        name: of the case.
        section: of RFC 9113 that has the rule.
        sent: the bytes.
        outcome: as above; of this server, where the RFC leaves a choice.
        opening: sent before, in place of the preface and SETTINGS.
    """

    name: str
    section: str
    sent: bytes
    outcome: str
    opening: bytes = OPENING


def settings(**values: int) -> bytes:
    return SettingsFrame(0, {getattr(SettingsFrame, name): value for name, value in values.items()}).serialize()


def window(stream: int, increment: int) -> bytes:
    return raw(WINDOW_, 0, stream, increment.to_bytes(4, "big"))


def without(name: str) -> list[tuple[str, str]]:
    return [each for each in fields() if each[0] != name]


def replaced(name: str, value: str) -> list[tuple[str, str]]:
    return [(key, value if key == name else sent) for key, sent in fields()]


def split_headers(*parts: bytes, end: bool = True) -> bytes:
    """Return a head in several frames."""
    begin = HeadersFrame(1, parts[0], flags=("END_STREAM",)).serialize()
    more = [ContinuationFrame(1, part).serialize() for part in parts[1:-1]]
    last = ContinuationFrame(1, parts[-1], flags=("END_HEADERS",) if end else ()).serialize()
    return b"".join([begin, *more, last])


OPEN = headers(1)
HEAD = block(fields())

VALID = [
    Case("unknown type", "4.1", raw(0xBE, 0xFF, 0, b"any") + raw(0xBE, 0, 77, b"any"), "valid"),
    Case("unknown flags", "4.1", raw(PING_, 0xFE, 0, b"12345678"), "valid"),
    Case("reserved bit", "4.1", raw(HEADERS_, 4, 1 << 31 | 1, HEAD), "valid"),
    Case(
        "DATA with padding",
        "6.1",
        OPEN + DataFrame(1, message(b"a"), flags=("PADDED",), pad_length=200).serialize(),
        "valid",
    ),
    Case(
        "DATA of padding alone",
        "6.1",
        OPEN + DataFrame(1, b"", flags=("PADDED",), pad_length=255).serialize() * 3,
        "valid",
    ),
    Case("DATA without content", "6.1", OPEN + data(1) * 2000, "valid"),
    Case(
        "HEADERS with padding",
        "6.2",
        HeadersFrame(1, HEAD, flags=("END_HEADERS", "PADDED"), pad_length=99).serialize(),
        "valid",
    ),
    Case("HEADERS with a priority", "6.2", raw(HEADERS_, 0x24, 1, b"\0\0\0\0\x10" + HEAD), "valid"),
    Case(
        "PRIORITY",
        "6.3",
        PriorityFrame(1, depends_on=3, stream_weight=9).serialize() + PriorityFrame(7).serialize(),
        "valid",
    ),
    Case("RST_STREAM with an unknown code", "7", OPEN + raw(RST_, 0, 1, b"\xff\xff\xff\xff"), "valid"),
    Case("unknown setting", "6.5.2", raw(SETTINGS_, 0, 0, b"\xbe\xef\0\0\0\1"), "valid"),
    Case("HEADER_TABLE_SIZE of 0", "6.5.2", settings(HEADER_TABLE_SIZE=0), "valid"),
    Case("PING ACK that was not asked for", "6.7", raw(PING_, 1, 0, bytes(8)) * 3, "valid"),
    Case("CONTINUATION", "6.10", split_headers(HEAD[:7], HEAD[7:20], HEAD[20:]), "valid"),
    Case("CONTINUATION without content", "6.10", split_headers(HEAD, b"", b""), "valid"),
    Case("CONNECT", "8.5", headers(1, [(":method", "CONNECT"), (":authority", "test:1")], END), "valid"),
    Case("trailers", "8.1", OPEN + data(1, message(b"hello")) + headers(1, [("x-a", "b")], END), "valid"),
]

BROKEN = [
    Case("another preface", "3.4", b"GET / HTTP/1.1\r\nhost: test\r\n\r\n", "closed", opening=b""),
    Case(
        "PING before SETTINGS",
        "3.4",
        PingFrame(0, b"12345678").serialize(),
        "connection PROTOCOL_ERROR",
        opening=PREFACE,
    ),
    Case("HEADERS before SETTINGS", "3.4", OPEN, "connection PROTOCOL_ERROR", opening=PREFACE),
    Case("over the frame size", "4.2", OPEN + raw(DATA_, 0, 1, bytes(262_145)), "connection FRAME_SIZE_ERROR"),
    Case("HEADERS over the frame size", "4.2", raw(HEADERS_, 5, 1, bytes(262_145)), "connection FRAME_SIZE_ERROR"),
    Case("HPACK index 0", "4.3", raw(HEADERS_, 5, 1, b"\x80"), "connection COMPRESSION_ERROR"),
    Case(
        "HPACK index that is not there", "4.3", raw(HEADERS_, 5, 1, HEAD + b"\xff\x7f"), "connection COMPRESSION_ERROR"
    ),
    Case("HPACK cut off", "4.3", raw(HEADERS_, 5, 1, HEAD[:-3]), "connection COMPRESSION_ERROR"),
    Case(
        "HPACK table larger than allowed",
        "4.3",
        raw(HEADERS_, 5, 1, b"\x3f\xff\xff\x7f" + HEAD),
        "connection COMPRESSION_ERROR",
    ),
    Case(
        "HPACK bad Huffman code",
        "4.3",
        raw(HEADERS_, 5, 1, HEAD + b"\x00\x83\xff\xff\xff\x01a"),
        "connection COMPRESSION_ERROR",
    ),
    Case("DATA on an idle stream", "5.1", data(1, b"any"), "connection PROTOCOL_ERROR"),
    Case("RST_STREAM on an idle stream", "5.1", reset(1), "connection PROTOCOL_ERROR"),
    Case("WINDOW_UPDATE on an idle stream", "5.1", window(1, 1), "connection PROTOCOL_ERROR"),
    Case(
        "CONTINUATION on an idle stream",
        "5.1",
        ContinuationFrame(1, HEAD, flags=("END_HEADERS",)).serialize(),
        "connection PROTOCOL_ERROR",
    ),
    Case("DATA behind END_STREAM", "5.1", headers(1, flags=END) + data(1, b"any"), "connection STREAM_CLOSED"),
    Case(
        "HEADERS behind END_STREAM",
        "5.1",
        headers(1, replaced(":path", "/echo.Echo/Sleep"), END) + headers(1, [("x", "y")], END),
        "connection STREAM_CLOSED",
    ),
    Case("DATA behind RST_STREAM", "5.1", OPEN + reset(1) + data(1, b"any"), "ignored"),
    Case("HEADERS behind RST_STREAM", "5.1", OPEN + reset(1) + headers(1), "ignored"),
    Case("RST_STREAM twice", "5.1", OPEN + reset(1) + reset(1), "ignored"),
    Case("WINDOW_UPDATE behind RST_STREAM", "5.1", OPEN + reset(1) + window(1, 1), "ignored"),
    Case("even stream", "5.1.1", headers(2), "connection PROTOCOL_ERROR"),
    Case("lower stream than before", "5.1.1", headers(5) + headers(3), "ignored"),
    Case("a stream twice", "5.1.1", headers(1) + headers(1), "stream PROTOCOL_ERROR"),
    Case(
        "too many streams",
        "5.1.2",
        b"".join(headers(n) for n in range(1, 205, 2)),
        "connection PROTOCOL_ERROR",
    ),
    Case("DATA on stream 0", "6.1", raw(DATA_, 0, 0, b"any"), "connection PROTOCOL_ERROR"),
    Case("DATA padded beyond its length", "6.1", OPEN + raw(DATA_, 8, 1, b"\x05aaaa"), "connection PROTOCOL_ERROR"),
    Case("DATA padded without length", "6.1", OPEN + raw(DATA_, 8, 1, b""), "connection PROTOCOL_ERROR"),
    Case("HEADERS on stream 0", "6.2", raw(HEADERS_, 4, 0, HEAD), "connection PROTOCOL_ERROR"),
    Case(
        "HEADERS padded beyond their length", "6.2", raw(HEADERS_, 0xD, 1, b"\xff" + HEAD), "connection PROTOCOL_ERROR"
    ),
    Case(
        "HEADERS that depend on themselves",
        "5.3.1",
        raw(HEADERS_, 0x24, 1, b"\0\0\0\1\x10" + HEAD),
        "connection PROTOCOL_ERROR",
    ),
    Case("HEADERS with half a priority", "6.2", raw(HEADERS_, 0x24, 1, b"\0\0\0"), "connection FRAME_SIZE_ERROR"),
    Case(
        "PING within HEADERS",
        "6.2",
        HeadersFrame(1, HEAD[:9]).serialize() + PingFrame(0, b"12345678").serialize(),
        "connection PROTOCOL_ERROR",
    ),
    Case(
        "DATA within HEADERS",
        "6.2",
        HeadersFrame(1, HEAD[:9]).serialize() + data(1, b"any"),
        "connection PROTOCOL_ERROR",
    ),
    Case(
        "unknown type within HEADERS",
        "6.2",
        HeadersFrame(1, HEAD[:9]).serialize() + raw(0xBE, 0, 1, b"any"),
        "connection PROTOCOL_ERROR",
    ),
    Case(
        "HEADERS within HEADERS", "6.2", HeadersFrame(1, HEAD[:9]).serialize() + headers(3), "connection PROTOCOL_ERROR"
    ),
    Case("PRIORITY on stream 0", "6.3", raw(PRIORITY_, 0, 0, bytes(5)), "connection PROTOCOL_ERROR"),
    Case("PRIORITY too short", "6.3", raw(PRIORITY_, 0, 1, bytes(4)), "connection FRAME_SIZE_ERROR"),
    Case("PRIORITY that depends on itself", "5.3.1", raw(PRIORITY_, 0, 1, b"\0\0\0\1\0"), "connection PROTOCOL_ERROR"),
    Case("RST_STREAM on stream 0", "6.4", raw(RST_, 0, 0, bytes(4)), "connection PROTOCOL_ERROR"),
    Case("RST_STREAM too long", "6.4", OPEN + raw(RST_, 0, 1, bytes(5)), "connection FRAME_SIZE_ERROR"),
    Case("SETTINGS on a stream", "6.5", raw(SETTINGS_, 0, 1), "connection PROTOCOL_ERROR"),
    Case("SETTINGS ACK with length", "6.5", raw(SETTINGS_, 1, 0, bytes(6)), "connection FRAME_SIZE_ERROR"),
    Case("SETTINGS ACK that was not asked for", "6.5", raw(SETTINGS_, 1, 0) * 3, "connection PROTOCOL_ERROR"),
    Case("SETTINGS of 5 bytes", "6.5", raw(SETTINGS_, 0, 0, bytes(5)), "connection FRAME_SIZE_ERROR"),
    Case("ENABLE_PUSH of 2", "6.5.2", settings(ENABLE_PUSH=2), "connection PROTOCOL_ERROR"),
    Case(
        "INITIAL_WINDOW_SIZE over the most",
        "6.5.2",
        settings(INITIAL_WINDOW_SIZE=2**31),
        "connection FLOW_CONTROL_ERROR",
    ),
    Case("MAX_FRAME_SIZE below the least", "6.5.2", settings(MAX_FRAME_SIZE=16_383), "connection PROTOCOL_ERROR"),
    Case("MAX_FRAME_SIZE over the most", "6.5.2", settings(MAX_FRAME_SIZE=2**24), "connection PROTOCOL_ERROR"),
    Case(
        "SETTINGS of a thousand entries",
        "10.5",
        raw(SETTINGS_, 0, 0, b"\0\2\0\0\0\0" * 1000),
        "connection ENHANCE_YOUR_CALM",
    ),
    Case(
        "INITIAL_WINDOW_SIZE that overflows a window",
        "6.9.2",
        headers(1) + window(1, MOST - 65_535) + settings(INITIAL_WINDOW_SIZE=65_536),
        "stream FLOW_CONTROL_ERROR",
    ),
    Case(
        "PUSH_PROMISE",
        "8.4",
        OPEN + PushPromiseFrame(1, 2, HEAD, flags=("END_HEADERS",)).serialize(),
        "connection PROTOCOL_ERROR",
    ),
    Case("PING too short", "6.7", raw(PING_, 0, 0, bytes(7)), "connection FRAME_SIZE_ERROR"),
    Case("PING too long", "6.7", raw(PING_, 0, 0, bytes(9)), "connection FRAME_SIZE_ERROR"),
    Case("PING on a stream", "6.7", raw(PING_, 0, 1, bytes(8)), "connection PROTOCOL_ERROR"),
    Case("GOAWAY on a stream", "6.8", raw(GOAWAY_, 0, 1, bytes(8)), "connection PROTOCOL_ERROR"),
    Case("GOAWAY too short", "6.8", raw(GOAWAY_, 0, 0, bytes(7)), "connection FRAME_SIZE_ERROR"),
    Case("WINDOW_UPDATE of 0 on the connection", "6.9", window(0, 0), "connection PROTOCOL_ERROR"),
    Case("WINDOW_UPDATE of 0 on a stream", "6.9", OPEN + window(1, 0), "connection PROTOCOL_ERROR"),
    Case("WINDOW_UPDATE too short", "6.9", raw(WINDOW_, 0, 0, bytes(3)), "connection FRAME_SIZE_ERROR"),
    Case("window of the connection over the most", "6.9.1", window(0, MOST) * 2, "connection FLOW_CONTROL_ERROR"),
    Case("window of a stream over the most", "6.9.1", OPEN + window(1, MOST) * 2, "stream FLOW_CONTROL_ERROR"),
    Case(
        "DATA beyond the stream's window",
        "6.9.1",
        OPEN + data(1, message(b"sleep")) + data(1, message(bytes(16_000))) * 70,
        "stream FLOW_CONTROL_ERROR",
    ),
    Case(
        "CONTINUATION on another stream",
        "6.10",
        HeadersFrame(1, HEAD[:9]).serialize() + ContinuationFrame(3, HEAD[9:], flags=("END_HEADERS",)).serialize(),
        "connection PROTOCOL_ERROR",
    ),
    Case(
        "CONTINUATION behind END_HEADERS",
        "6.10",
        OPEN + ContinuationFrame(1, HEAD, flags=("END_HEADERS",)).serialize(),
        "connection PROTOCOL_ERROR",
    ),
    Case("CONTINUATION without end", "10.5", split_headers(HEAD, *[b""] * 100_000, end=False), "closed"),
    Case(
        "CONTINUATION with headers without end",
        "10.5",
        split_headers(HEAD, *[block([("x-a", "a" * 100)])] * 3000, end=False),
        "closed",
    ),
    Case("upper case in a name", "8.2.1", headers(1, [*fields(), ("X-A", "b")], END), "stream PROTOCOL_ERROR"),
    Case("a space in a name", "8.2.1", headers(1, [*fields(), ("x a", "b")], END), "stream PROTOCOL_ERROR"),
    Case("a line feed in a value", "8.2.1", headers(1, [*fields(), ("x-a", "b\nc")], END), "stream PROTOCOL_ERROR"),
    Case("a space around a value", "8.2.1", headers(1, [*fields(), ("x-a", " b ")], END), "ignored"),
    Case("connection", "8.2.2", headers(1, [*fields(), ("connection", "close")], END), "stream PROTOCOL_ERROR"),
    Case(
        "transfer-encoding",
        "8.2.2",
        headers(1, [*fields(), ("transfer-encoding", "chunked")], END),
        "stream PROTOCOL_ERROR",
    ),
    Case("te of gzip", "8.2.2", headers(1, replaced("te", "gzip"), END), "stream PROTOCOL_ERROR"),
    Case("no :method", "8.3.1", headers(1, without(":method"), END), "stream PROTOCOL_ERROR"),
    Case("no :path", "8.3.1", headers(1, without(":path"), END), "stream PROTOCOL_ERROR"),
    Case("no :scheme", "8.3.1", headers(1, without(":scheme"), END), "stream PROTOCOL_ERROR"),
    Case("no :authority", "8.3.1", headers(1, without(":authority"), END), "stream PROTOCOL_ERROR"),
    Case("an empty :path", "8.3.1", headers(1, replaced(":path", ""), END), "stream PROTOCOL_ERROR"),
    Case(":path twice", "8.3.1", headers(1, [(":path", "/a"), *fields()], END), "stream PROTOCOL_ERROR"),
    Case(":status", "8.3", headers(1, [(":status", "200"), *fields()], END), "stream PROTOCOL_ERROR"),
    Case("an unknown pseudo-header", "8.3", headers(1, [(":protocol", "x"), *fields()], END), "stream PROTOCOL_ERROR"),
    Case(
        "a pseudo-header behind others",
        "8.3",
        headers(1, [*without(":path"), (":path", "/echo.Echo/Echo")], END),
        "stream PROTOCOL_ERROR",
    ),
    Case(
        "content-length that is not met", "8.1.1", headers(1, fields(content_length="3"), END), "stream PROTOCOL_ERROR"
    ),
    Case(
        "content-length that is exceeded",
        "8.1.1",
        headers(1, fields(content_length="3")) + data(1, message(b"hello"), ("END_STREAM",)),
        "stream PROTOCOL_ERROR",
    ),
    Case(
        "content-length that is no number",
        "8.1.1",
        headers(1, fields(content_length="a"), END),
        "stream PROTOCOL_ERROR",
    ),
    Case("trailers without END_STREAM", "8.1", OPEN + headers(1, [("x-a", "b")]), "stream PROTOCOL_ERROR"),
    Case("trailers with a pseudo-header", "8.1", OPEN + headers(1, [(":path", "/a")], END), "stream PROTOCOL_ERROR"),
    Case(
        "trailers twice",
        "8.1",
        OPEN + headers(1, [("x-a", "b")], END) + headers(1, [("x-a", "b")], END),
        "connection STREAM_CLOSED",
    ),
]


def outcome_of(server, case: Case) -> str:
    with connected(server, case.opening) as peer:
        peer.send(case.sent)
        peer.call(LAST)
        found = ""
        for frame in peer.frames():
            if isinstance(frame, GoAwayFrame):
                return f"connection {CODES[frame.error_code]}"
            if isinstance(frame, RstStreamFrame) and frame.error_code:
                found = f"stream {CODES[frame.error_code]}"
            if isinstance(frame, DataFrame) and frame.stream_id == LAST:
                assert frame.data == message(b"hello")
                return found
        return "closed"


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_what_is_allowed(echo, case):
    """Frames that the RFC allows cause no error."""
    assert not outcome_of(echo, case)


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_what_breaks_a_rule(echo, case):
    """A broken rule has the outcome of the table, and does not affect another connection."""
    with connected(echo) as other:
        assert (outcome_of(echo, case) or "ignored") == case.outcome
        other.call(1)
        assert other.until(DataFrame, 1).data == message(b"hello")


def test_the_server_opens_too(echo):
    """The server's SETTINGS is its first frame, and comes before the peer has sent anything."""
    with connected(echo, opening=b"") as peer:
        assert isinstance(next(peer.frames()), SettingsFrame)
