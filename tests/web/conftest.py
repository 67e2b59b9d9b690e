"""A real browser on the page of a real server; the page must stay within its origin and log no error."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import HANG, ROOT, Server, made_once, start_server

from tests.server import small_transformer, tokenizers_of_tests, transformer

EVERY_STAGE = ("output", "contributions", "hidden")
ENCODER = transformer.Shape(
    words=("[UNK]", "I", "gave", "my", "cat", "Tater", "a", "toy"),
    classes=(),
    width=48,
    heads=12,
    head_dims=(4, 4),
    stages=(EVERY_STAGE, EVERY_STAGE),
    causal=(),
    biased=(),
    longest=512,
)
DECODER = transformer.Shape(
    words=("[UNK]", "the", "cat", "sat", "on", "a", "mat", ".", "dog", "ran", "to", "my", "house", "saw", "it", "and"),
    classes=(),
    width=16,
    heads=2,
    head_dims=(8, 8),
    stages=(EVERY_STAGE, EVERY_STAGE),
    causal=(0, 1),
    biased=(),
    longest=128,
    goes_on=True,
)
CHROMIUM = "/usr/bin/chromium"
LONGEST_WAIT = 1000 * HANG  # milliseconds

expect.set_options(timeout=LONGEST_WAIT)


@pytest.fixture(scope="session")
def served_models(request: pytest.FixtureRequest) -> Path:
    """The embedded models, an encoder of 2 x 12 heads and a decoder, made once for each state of its sources."""
    modules = (transformer, small_transformer, tokenizers_of_tests)
    sources = [
        Path(__file__),
        *(Path(module.__file__) for module in modules),
        ROOT / "proto/attention/v1/attention.proto",
    ]
    sources += sorted((ROOT / "models").rglob("*.*"))

    def make(folder: Path) -> None:
        transformer.write(folder / "encoder/1", ENCODER)
        transformer.write(folder / "decoder/1", DECODER)
        tokenizers_of_tests.write(folder, "wordpiece")  # takes pairs of texts
        shutil.copytree(ROOT / "models", folder, dirs_exist_ok=True)

    return made_once(request.config.cache.mkdir("web-models"), sources, make)


@pytest.fixture(scope="session")
def site(served_models: Path) -> Iterator[Server]:
    """One server for all tests."""
    with start_server(served_models) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file, closed before further tests start event loops."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@contextmanager
def watched(browser: Browser, origin: str, **options: Any) -> Iterator[Page]:
    """A page that fails the test on a request to another origin, a console error or an exception."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(LONGEST_WAIT)
    page.console_errors = console_errors = []
    foreign_requests: list[str] = []
    page.on("console", lambda said: console_errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    page.on(
        "request",
        lambda sent: foreign_requests.append(sent.url) if not sent.url.startswith((origin, "blob:", "data:")) else None,
    )
    yield page
    context.close()
    assert foreign_requests == []
    assert console_errors == []


Visit = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, site: Server) -> Iterator[Visit]:
    """A function that opens the page at a link, as in `visit(view="heads", text="..")`, with browser options."""
    with ExitStack() as pages:

        def visit(options: dict[str, Any] | None = None, **state: Any) -> Page:
            page = pages.enter_context(watched(browser, site.url, **(options or {})))
            page.goto(f"{site.url}/#{urlencode(state, quote_via=quote)}")
            page.locator("main").wait_for()
            return page

        yield visit


@pytest.fixture(scope="session")
def ask(site: Server) -> Callable[..., dict[str, Any]]:
    """A function that calls the API for one sequence and returns the result, with outputs as arrays."""

    def ask(model: str, **request: Any) -> dict[str, Any]:
        response = requests.post(f"{site.url}/v1/models/{model}:attend", json=request, timeout=HANG)
        assert response.ok, response.text
        (result,) = response.json()["results"]
        arrays = {name: np.array(tensor["values"], np.float32) for name, tensor in result["outputs"].items()}
        return result | {"outputs": arrays}

    return ask
