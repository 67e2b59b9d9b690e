"""The page's files over HTTP."""

import gzip
import re
import subprocess
import sys
import zipfile
from http.client import HTTPConnection

import pytest
import requests
from attention_server.auth.callers import PUBLIC_PATHS
from attention_server.rest import page
from attention_server.rest.middleware import PUBLIC
from serving import HANG, ROOT, Server, start_server

from tests.security.conftest import make_token


@pytest.fixture(scope="module")
def index(site):
    return requests.get(site.url, timeout=HANG)


def test_the_policy_allows_this_origin_alone(index):
    """The content security policy allows files of this origin only: no inline code, no eval, no frames."""
    policy = dict(part.strip().split(" ", 1) for part in index.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in index.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index.text)


def test_caching(index, site):
    """`/` is revalidated each time; the files that it loads have names by content, and are cached."""
    assert index.headers["cache-control"] == "no-cache"
    loaded = re.findall(r'(?:src|href|content)="(page/[^"]+)"', index.text)
    assert len(loaded) == 3
    for path in loaded:
        answer = requests.get(f"{site.url}/{path}", timeout=HANG)
        assert answer.ok
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        plain = requests.get(f"{site.url}/{path}", headers={"accept-encoding": "identity"}, timeout=HANG)
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        assert len(gzip.compress(plain.content)) < 64 * 1024


# Paths as sent by a client without normalization.
ELSEWHERE = [
    "/page/../page.py",
    "/page/../server.py",
    "/page/%2e%2e/page.py",
    "/page/..%2fpage.py",
    "/page/..%5cpage.py",
    "/page//LICENSES.txt",
    "//page/LICENSES.txt",
    "//",
    "/./",
    "/page",
    "/page/",
    "/page/index.html",
    "/page/LICENSES.txt%00",
    "/page/LICENSES.txt%2f..%2f..%2fpage.py",
    "/page/licenses.txt",
    "/index.html",
]


def status(server: Server, method: str, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=HANG)
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


@pytest.fixture(scope="module")
def guarded(served_models, tmp_path_factory):
    """A server that requires tokens."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(make_token("reader")[1])
    with start_server(served_models, "--tokens", tokens) as running:
        yield running


def test_open_paths_are_the_page_and_health(index):
    """Without a token only the page, its three files, their licenses and health are available."""
    loaded = {f"/{path}" for path in re.findall(r'"(page/[^"]+)"', index.text)}
    assert len(loaded) == 3
    assert {"/", "/page/LICENSES.txt", *loaded} == page.PATHS
    assert PUBLIC - page.PATHS == PUBLIC_PATHS


@pytest.mark.parametrize("path", ELSEWHERE)
def test_no_other_file_is_there(path, site, guarded):
    """No spelling of a path reaches another file; a server that requires tokens answers 401."""
    assert status(site, "GET", path) in (404, 307)  # 307: to the same path without its last slash
    assert status(guarded, "GET", path) == 401


def test_the_page_is_only_read(guarded):
    """The page's files allow GET and HEAD only."""
    for path in page.PATHS:
        assert [status(guarded, method, path) for method in ("GET", "HEAD")] == [200, 200], path
        assert {status(guarded, method, path) for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")} == {405}, (
            path
        )


def test_licences_travel_with_the_bundle(site, index):
    """The page's files and the viewer list the bundled packages with versions and licenses."""
    licences = requests.get(f"{site.url}/page/LICENSES.txt", timeout=HANG).text
    assert re.findall(r"^(\S+) \d+\.\d+\.\d+$", licences, re.MULTILINE) == [
        "d3-format",
        "lit-html",
    ]
    assert licences.count("Copyright") >= 2
    (exported,) = (content for name, content in page.CONTENTS.items() if name.startswith("viewer-"))
    assert licences.strip() in exported.decode()


def test_the_wheel_has_the_page(tmp_path):
    """The wheel has the files of the page and the viewer, without the source."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"attention_server/rest/page/{name}" for name in page.CONTENTS} <= names
    assert "attention_client/display/viewer.html" in names
    assert not [name for name in names if "node_modules" in name or name.endswith((".ts", ".mjs"))]
