"""The errors of access that the document lists for an operation are those that the server gives, and no fewer."""

import hashlib

import pytest
import requests
from attention_server.auth.callers import Callers
from serving import HANG, bearer

from tests.local_server import local_server
from tests.openapi.test_document import document

OPERATIONS = [(path, method) for path, methods in document["paths"].items() for method in methods]
TOKENS = """
[reader]
sha256 = "{}"
rights = []

[limited]
sha256 = "{}"
requests_per_second = 0.0001
"""


@pytest.fixture(scope="module")
def server(dot_only, tmp_path_factory):
    """A server with one caller without rights, and one over its limit."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens.write_text(TOKENS.format(*(hashlib.sha256(name.encode()).hexdigest() for name in ("reader", "limited"))))
    with local_server(dot_only, callers=Callers(tokens)) as running:
        assert requests.get(f"{running.url}/v2", headers=bearer("limited"), timeout=HANG).status_code == 200
        yield running


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, {}),
        (403, bearer("reader") | {"sec-fetch-site": "cross-site"}),
        (421, bearer("reader") | {"host": "another.example"}),
        (429, bearer("limited")),
    ],
)
def test_an_error_of_access_is_in_the_document(server, status, headers):
    """Every operation answers a request of each kind with the status if the document lists it, else with another."""
    answered = {}
    for path, method in OPERATIONS:
        url = server.url + path.format(model="dot", version=1, id="none")
        answered[path, method] = requests.request(method, url, headers=headers, timeout=HANG).status_code == status
    listed = {
        (path, method): str(status) in document["paths"][path][method]["responses"] for path, method in OPERATIONS
    }
    assert answered == listed
    assert any(listed.values())
