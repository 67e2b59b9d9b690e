"""The page in Chromium: the first picture of a cold load, and what a move of the pointer costs over 12 heads.

    taskset -c 0 .venv-dev/bin/python -m benchmarks.page [--quick]

The goals: a first picture within 1 s on one core; 16 ms a move at 512 tokens, 50 ms at 4,000; --quick takes 1,000.
A move is measured from its event to the end of its handler, which draws; the browser's own frame comes on top.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlencode

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table

from tests.server import transformer

ROOT = Path(__file__).parents[1]
SERVER = ROOT / ".venv/bin/attention-server"
SENTENCE = "I gave my cat Tater a toy"
MOVES, LOADS = 60, 5
PATIENCE = 600_000  # milliseconds: a long text is computed once before it is pointed at
FIRST_PICTURE = """() => new Promise((done) => {
    const look = () => document.querySelector(".arc") ? done(performance.now()) : requestAnimationFrame(look);
    look();
})"""
INTERACTIONS = "performance.getEntriesByName('interaction').map((each) => each.duration)"


def shape(tokens: int) -> transformer.Shape:
    """Return a layer of 12 heads that reads texts of so many tokens."""
    return transformer.Shape(
        words=("[UNK]", *SENTENCE.split()),
        classes=(),
        width=48,
        heads=12,
        head_dims=(4,),
        stages=(("output", "contributions", "hidden"),),
        causal=(),
        biased=(),
        longest=tokens,
    )


@contextmanager
def served(models: Path) -> Iterator[str]:
    """Serve a repository, and give its address."""
    ports = ["--rest-port", "0", "--grpc-port", "0"]
    command = [str(SERVER), *ports, "--models", str(models), "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 # our own
        assert server.stdout is not None
        yield f"http://{server.stdout.readline().split()[1].removeprefix('rest=')}"
        server.terminate()


def link(url: str, **state: object) -> str:
    return f"{url}/#{urlencode(state, quote_via=quote)}"


def first_picture(browser: Browser, url: str) -> float:
    """Return the milliseconds from a cold load's start to its first arc."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(link(url, model="encoder", text=SENTENCE), wait_until="commit")
    time: float = page.evaluate(FIRST_PICTURE)
    page.context.close()
    return time


def moves(browser: Browser, url: str, tokens: int) -> list[float]:
    """Return the milliseconds of each move of the pointer over a matrix of so many tokens."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE)
    words = SENTENCE.split()
    text = " ".join(words[at % len(words)] for at in range(tokens))
    page.goto(link(url, view="atlas", tab="layer", model="encoder", text=text))
    stage = page.locator(".stage").first
    stage.wait_for()
    page.locator(".view[aria-busy=false]").wait_for()
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box
    page.evaluate("performance.clearMeasures('interaction')")
    for at in range(MOVES):
        share = (at + 1) / (MOVES + 2)
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + min(box["height"], 400) * share)
    durations: list[float] = page.evaluate(INTERACTIONS)
    page.close()
    assert len(durations) >= MOVES // 2, "the pointer met no drawing"
    return durations


def main() -> None:
    """Measure, and print a table."""
    lengths = (512, 1000 if "--quick" in sys.argv[1:] else 4000)
    table = Table("measured", "median", "longest", "of", box=None)

    def add(name: str, times: list[float]) -> None:
        table.add_row(name, f"{statistics.median(times):.1f} ms", f"{max(times):.1f} ms", str(len(times)))

    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        transformer.write(Path(folder) / "encoder/1", shape(max(lengths)))
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        with served(Path(folder)) as url:
            add("first picture of a cold load", [first_picture(browser, url) for _ in range(LOADS)])
            for tokens in lengths:
                add(f"a move of the pointer, {tokens} tokens x 12 heads", moves(browser, url, tokens))
        browser.close()
    Console().print(table)


if __name__ == "__main__":
    main()
