"""Clients that start in a moment: Node and curl, and the TypeScript client on Node and in Chromium."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from serving import HANG, ROOT, wait_until

from tests.clients.conftest import HERE, SCENARIOS, Program, Report, go_through, read_rest
from tests.local_server import LocalServer

NODE = shutil.which("node", path=str(Path(sys.executable).parent)) or "node"
ESBUILD = ROOT / "server/web/node_modules/esbuild/bin/esbuild"
SLOW = ("stream", "large", "deadline")  # in Chromium
AT_ONCE = [each for each in SCENARIOS if each not in SLOW]
IN_PAGE = ("--format=iife", "--global-name=scenarios")
TYPESCRIPT = HERE / "typescript"


def bundled(entry: Path, out: Path, *flags: str) -> Path:
    """Return a program of TypeScript as one of JavaScript."""
    command = [NODE, ESBUILD, entry, "--bundle", f"--outfile={out}", *(flags or ["--format=esm"])]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=HANG)
    return out


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    typescript = bundled(TYPESCRIPT / "node.ts", tmp_path_factory.mktemp("node") / "node.mjs")
    return {
        "node": Program([NODE, HERE / "node/grpc.mjs"]),
        "fetch": Program([NODE, HERE / "node/fetch.mjs"], rest=True),
        "curl": Program([HERE / "curl/client.sh"], rest=True, read=read_rest),
        "typescript": Program([NODE, typescript], rest=True),
    }


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", ["node", "fetch", "curl", "typescript"])
def test_a_client_goes_through_the_scenarios(server, programs, name, scenario):
    """One call, many, 30 MiB, a deadline, a cancellation, an error with its field, and a refusal that is repeated."""
    go_through(programs[name], scenario, server)


# --- in a browser ---


@dataclass
class InChromium:
    """The scenarios of the TypeScript client in a page of the server."""

    page: Page
    scenario: str = ""

    @contextmanager
    def running(self, server: LocalServer, scenario: str) -> "Iterator[InChromium]":
        begin = "([name, url]) => { report = scenarios.run(name, url, new Promise((end) => { stop = end })) }"
        self.page.evaluate(begin, [scenario, server.url])
        yield self

    def until(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    def report(self) -> Report:
        return self.page.evaluate("() => { stop(); return report }")


@pytest.fixture(scope="module")
def chromium(server, tmp_path_factory) -> Iterator[InChromium]:
    script = bundled(TYPESCRIPT / "scenarios.ts", tmp_path_factory.mktemp("browser") / "s.js", *IN_PAGE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{server.url}/docs")
        page.evaluate(f"{script.read_text()}; globalThis.scenarios = scenarios")
        yield InChromium(page)
        browser.close()


@pytest.mark.parametrize("scenario", [*AT_ONCE, *(pytest.param(each, marks=pytest.mark.long) for each in SLOW)])
def test_the_typescript_client_in_chromium(server, chromium, scenario):
    """The same scenarios in a page."""
    go_through(chromium, scenario, server)


def test_the_rest_of_the_typescript_client(server, programs):
    """Numbers of two bytes, the top k, models, memories, errors of each form, and any operation by its name."""
    with programs["typescript"].running(server, "rest") as run:
        report = run.report()
    assert report["read"] == {
        "output": ["Float32Array", 1, 0],
        "weights": {"indices": ["Uint16Array", 0], "values": ["Float32Array", 1]},
    }
    assert (report["model"], report["models"], report["kept"]) == ("dot", 1, [True])
    assert report["index"] == [{"name": "dot", "version": "1", "state": "READY", "reason": ""}]
    assert (report["gone"]["code"], report["gone"]["status"], report["gone"]["named"]) == ("NOT_FOUND", 404, True)
    assert not report["gone"]["retry"]
    assert report["given"] == {"code": "CANCELLED"}
    assert report["embedding"]["field"] == "model"
    away = {"code": "UNAVAILABLE", "message": "the server cannot be reached", "field": "", "status": 0}
    assert report["away"] == away | {"retry": True, "named": False}


@pytest.mark.parametrize("document", sorted((ROOT / "docs/clients").glob("*.md")), ids=lambda path: path.stem)
def test_the_documents_show_the_programs(document):
    """The code of a document is code of the program that it links to; Python's is tried elsewhere."""
    text = document.read_text()
    linked = [(document.parent / path).resolve() for path in re.findall(r"\]\((../../(?:tests|client)/[^)]+)\)", text)]
    programs = [path.read_text() for path in linked]
    for code in re.findall(r"^```(?!python)\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        assert any(code in program for program in programs), code
