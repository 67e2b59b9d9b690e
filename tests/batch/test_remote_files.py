"""Files at addresses: a local server of HTTP with ranges, which also answers as S3 does, and fsspec's own memory."""

import gzip
import io
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import fsspec
import pandas as pd
import pytest
from attention_batch.errors import Refused, TooManyErrors
from attention_batch.readers import remote

from tests.batch.scoring import SENTENCES, everything, letters_of, rows_of, score, write

TEXTS = [None if i == 20 else SENTENCES[i % 4] for i in range(50)]
LINES = "".join(f'{{"text": "{text}"}}\n' if text else '{"text": null}\n' for text in TEXTS).encode()


class Store(BaseHTTPRequestHandler):
    """Objects by path: HEAD, GET with ranges, and the list of a bucket as S3 has it."""

    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        content = self.objects.get(unquote(address.path))
        status, headers = (
            200,
            {"ETag": '"1"', "Last-Modified": "Mon, 30 Nov 2026 00:00:00 GMT", "Accept-Ranges": "bytes"},
        )
        if "list-type" in query:
            content = self.listed(unquote(address.path).strip("/"), query.get("prefix", ""))
        elif content is None:
            status, content = 404, b""
        elif self.headers.get("Range"):
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(content), len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            status, content = 206, content[int(first) : end]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def listed(self, bucket, prefix):
        names = {path.removeprefix(f"/{bucket}/"): each for path, each in self.objects.items()}
        count = sum(name.startswith(prefix) for name in names)
        found = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(each)}</Size>"
            "<LastModified>2026-11-30T00:00:00.000Z</LastModified></Contents>"
            for name, each in sorted(names.items())
            if name.startswith(prefix)
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{found}"
            "</ListBucketResult>"
        ).encode()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def store():
    """The address of a server, and its objects by path."""
    table = io.BytesIO()
    pd.DataFrame({"text": pd.Series(TEXTS, dtype="category")}).to_parquet(table, row_group_size=20)
    Store.objects = {
        "/bucket/in/part-0.parquet": table.getvalue(),
        "/bucket/in/_SUCCESS": b"",
        "/bucket/in.jsonl": LINES,
        "/bucket/in.jsonl.gz": gzip.compress(LINES),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-a-test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def check_scored(job, source, folder):
    """Score an address in two runs, the first of which stops; compare with the file of its lines scored here."""
    plain = folder / "plain.jsonl"
    plain.write_bytes(LINES)
    assert score(job(plain, folder / "plain.out.jsonl", "multi-head", shard_rows=9))[0] == 3
    output = folder / "out.jsonl"
    with pytest.raises(TooManyErrors):
        score(job(source, output, "multi-head", shard_rows=9, max_errors=0))
    assert score(job(source, output, "multi-head", shard_rows=9))[0] == 3
    assert rows_of(output) == rows_of(folder / "plain.out.jsonl")
    assert [letter["row"] for letter in letters_of(output)] == [20]


@pytest.mark.parametrize("name", ["in/part-0.parquet", "in.jsonl", "in.jsonl.gz"])
def test_over_http(job, store, tmp_path, name):
    """A file at http:// is scored, and resumed, as one of this machine."""
    check_scored(job, f"http://{store}/bucket/{name}", tmp_path)


@pytest.mark.parametrize("name", ["in", "in/part-0.parquet", "in.jsonl.gz"])
def test_over_s3(job, store, tmp_path, name, credentials):
    """A file or a folder at s3:// is scored, and resumed, as one of this machine."""
    check_scored(job, f"s3://bucket/{name}?scheme=http&endpoint_override={store}&region=a", tmp_path)


def test_a_folder_of_fsspec(job, tmp_path):
    """A folder of any further store of fsspec is read without its hidden files; a changed file is noticed."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/in/b.jsonl": LINES[:60], "/in/a.jsonl": LINES, "/in/_SUCCESS": b"", "/in/.c.jsonl": b"{}"})
    try:
        assert sorted(remote.files_below("memory://in")) == [
            f"memory://in/{name}" for name in (".c.jsonl", "_SUCCESS", "a.jsonl", "b.jsonl")
        ]
        output = tmp_path / "out.jsonl"
        assert score(job("memory://in", output, "multi-head"))[0] == 3
        assert len(rows_of(output)) == 50
        before = everything(output)
        assert score(job("memory://in", output, "multi-head"))[0] == 3
        assert everything(output) == before
        memory.pipe("/in/b.jsonl", LINES[60:120])
        with pytest.raises(Refused, match="an earlier run was not of the same: input"):
            score(job("memory://in", output, "multi-head"))
    finally:
        memory.rm("/in", recursive=True)


def test_addresses_that_do_not_do(job, store, tmp_path, monkeypatch):
    """What is not there, an unknown scheme, credentials in an address and Arrow files are refused in words."""
    write(tmp_path / "in.jsonl", {"text": ["a"]})
    for address, said in (
        (f"http://{store}/bucket/none.jsonl", "cannot read http://"),
        ("http://127.0.0.1:9/in.jsonl", "cannot read http://"),
        ("nosuch://in.jsonl", "cannot read nosuch://in.jsonl"),
        ("s3://key:secret@bucket/in.jsonl", "give credentials by the environment"),
    ):
        with pytest.raises(Refused, match=said):
            score(job(address, tmp_path / "out.jsonl", "multi-head"))
    Store.objects["/bucket/in.arrow"] = b"ARROW1"
    with pytest.raises(Refused, match="copy this one here, or write Parquet"):
        score(job(f"http://{store}/bucket/in.arrow", tmp_path / "out.jsonl", "multi-head"))
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(Refused, match=r"http:// needs a package: pip install 'attention-service\[remote\]'"):
        score(job(f"http://{store}/bucket/in.jsonl", tmp_path / "out.jsonl", "multi-head"))
