"""Takes the page's pictures in docs/figures/: `make screenshots`.

They are shots of a real server with the embedded models, each small enough for a README.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlencode

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs/figures"
LARGEST = 300_000  # bytes
SENTENCE = "I gave my cat Tater a toy"
NUMBER = "four thousand twenty one"


def ready(selector: str) -> Callable[[Page], None]:
    return lambda page: page.locator(selector).first.wait_for(state="attached")


def switch_off(page: Page) -> None:
    page.get_by_role("switch", name="head 0").click()
    page.locator(".other").first.wait_for()


MEET = {"model": "multi-head", "text": SENTENCE}
# Each picture: the page's state, its colours, its size, and what happens before it is taken.
SHOTS: dict[str, tuple[dict[str, object], str, tuple[int, int], Callable[[Page], None]]] = {
    "page-meet": (MEET, "light", (1440, 840), ready(".arc")),
    "page-changed": (MEET, "dark", (1440, 840), switch_off),
    "page-steps": (
        MEET | {"view": "steps", "step": 4, "query": 1, "head": 1},
        "light",
        (1440, 900),
        ready(".flow"),
    ),
    "page-head-alone": (
        MEET | {"view": "steps", "track": "heads", "query": 1, "head": 1},
        "light",
        (1440, 680),
        ready(".flow"),
    ),
    "page-layer": (
        MEET | {"view": "atlas", "tab": "layer", "lock": 1},
        "light",
        (1480, 860),
        ready(".row-table td"),
    ),
    "page-translate": (
        {"view": "translate", "model": "cross-attention", "text": "", "memory": NUMBER, "said": 6},
        "light",
        (1280, 1000),
        ready(".spoken .mark"),
    ),
    "page-compare": (
        MEET | {"view": "compare", "b.model": "multi-head", "b.text": "Mia was shown a letter by Leo"},
        "dark",
        (1380, 780),
        ready(".panels canvas"),
    ),
    "page-phone": (MEET, "light", (390, 844), ready(".arc")),
}


def take(url: str) -> None:
    """Take every picture; one that is too large is an error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, (state, scheme, (width, height), prepare) in SHOTS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            page.goto(f"{url}/#{urlencode(state, quote_via=quote)}")
            prepare(page)
            file = FIGURES / f"{name}.png"
            page.screenshot(path=file)
            page.close()
            assert file.stat().st_size < LARGEST, f"{file} is too large"
            print(f"{file.relative_to(ROOT)} {file.stat().st_size // 1000} kB")
        browser.close()


def main() -> None:
    """Serve the embedded models, and take pictures."""
    ports = ["--rest-port", "0", "--grpc-port", "0"]
    command = [ROOT / ".venv/bin/attention-server", *ports, "--models", ROOT / "models", "--log-level", "warning"]
    with TemporaryDirectory() as folder:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
        try:
            assert server.stdout is not None
            ready_line = server.stdout.readline()
            take(f"http://{ready_line.split()[1].removeprefix('rest=')}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
