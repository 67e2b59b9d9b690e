"""The page's files as HTTP serves them."""

import gzip
import re

import pytest
import requests


@pytest.fixture(scope="module")
def index(site):
    return requests.get(site.url, timeout=30)


def test_the_policy_allows_this_origin_alone(index):
    """Scripts and styles come as files of this origin; nothing is inline, nothing evaluated, nobody may frame it."""
    policy = dict(part.strip().split(" ", 1) for part in index.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in index.headers["content-security-policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index.text)


def test_caching(index, site):
    """`/` is asked for anew each time; what it loads has a name of its content, and is kept."""
    assert index.headers["cache-control"] == "no-cache"
    loaded = re.findall(r'(?:src|href|content)="(page/[^"]+)"', index.text)
    assert len(loaded) == 3
    for path in loaded:
        answer = requests.get(f"{site.url}/{path}", timeout=30)
        assert answer.ok
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        plain = requests.get(f"{site.url}/{path}", headers={"accept-encoding": "identity"}, timeout=30)
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        assert len(gzip.compress(plain.content)) < 64 * 1024


def test_no_other_file_is_there(site):
    """Only the page's own files are served."""
    assert requests.get(f"{site.url}/page/../server.py", timeout=30).status_code == 404
    assert requests.get(f"{site.url}/page/index.html", timeout=30).status_code == 404
