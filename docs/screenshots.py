"""Takes the page's pictures in docs/figures/: `make screenshots`.

They are shots of a real server with the embedded models, and with the decoder of docs/examples/passages.py, which is
trained once into build/screenshots. `page-*.png` are those of docs/page.md, each small enough for a README;
`views-*.png` show a view on three screens, light and dark.
"""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlencode

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "build/screenshots/models"
FIGURES = ROOT / "docs/figures"
LARGEST = 300_000  # bytes
SENTENCE = "I gave my cat Tater a toy"
NUMBER = "four thousand twenty one"
FACTS = "passage Anna tea Bert milk passage Carl figs Dora honey passage Emil nuts Ida soup question Dora"


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
    "page-generate": (
        {"view": "generate", "model": "passages", "text": FACTS, "said": 1, "read": "1.0"},
        "light",
        (1440, 800),
        ready(".written-figure .line"),
    ),
    "page-compare": (
        MEET | {"view": "compare", "b.model": "multi-head", "b.text": "Mia was shown a letter by Leo"},
        "dark",
        (1380, 780),
        ready(".panels canvas"),
    ),
    "page-phone": (MEET, "light", (390, 844), ready(".arc")),
}

# Each view: what is taken of it, on each screen, light and dark.
VIEWS = {
    "meet": "page-meet",
    "steps": "page-steps",
    "atlas": "page-layer",
    "translate": "page-translate",
    "generate": "page-generate",
    "compare": "page-compare",
}
SCREENS = ((1440, 900), (1024, 768), (390, 844))
SMALL, GAP = 0.45, 12  # of a screen's size; pixels between screens


def shot(browser: Browser, url: str, name: str, scheme: str, size: tuple[int, int]) -> bytes:
    """Return a PNG of one state on one screen."""
    state, _, _, prepare = SHOTS[name]
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if scheme == "dark" else "light",
        reduced_motion="reduce",
    )
    page.goto(f"{url}/#{urlencode(state, quote_via=quote)}")
    prepare(page)
    page.locator(".view[aria-busy=false]:not(.stale)").wait_for()
    taken = page.screenshot()
    page.close()
    return taken


def sheet(browser: Browser, url: str, name: str) -> Image.Image:
    """Return one picture of a state on all screens: light ones above, dark ones below."""
    sizes = [(round(width * SMALL), round(height * SMALL)) for width, height in SCREENS]
    height = max(height for _, height in sizes)
    whole = Image.new("RGB", (sum(w for w, _ in sizes) + 4 * GAP, 2 * height + 3 * GAP), "#8a8f98")
    for row, scheme in enumerate(("light", "dark")):
        left = GAP
        for size, small in zip(SCREENS, sizes, strict=True):
            picture = Image.open(io.BytesIO(shot(browser, url, name, scheme, size))).convert("RGB")
            whole.paste(picture.resize(small, Image.Resampling.LANCZOS), (left, GAP + row * (height + GAP)))
            left += small[0] + GAP
    return reduced(whole)


def reduced(picture: Image.Image) -> Image.Image:
    """Return a picture of 256 colours: the 128 most frequent, and 128 that keep the few pixels of a head."""
    frequent = sorted(picture.getcolors(1 << 24) or [], reverse=True)[:128]
    spread = picture.quantize(128, Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(part for _, colour in frequent for part in colour), *spread[: 3 * 128]])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def take(url: str) -> None:
    """Take every picture; one that is too large is an error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, (_, scheme, size, _) in SHOTS.items():
            (FIGURES / f"{name}.png").write_bytes(shot(browser, url, name, scheme, size))
        for view, name in VIEWS.items():
            sheet(browser, url, name).save(FIGURES / f"views-{view}.png", optimize=True)
        browser.close()
    for file in sorted([*FIGURES.glob("page-*.png"), *FIGURES.glob("views-*.png")]):
        assert file.stat().st_size < LARGEST, f"{file} is too large"
        print(f"{file.relative_to(ROOT)} {file.stat().st_size // 1000} kB")


def make_models() -> None:
    """Put the embedded models, and a decoder that is trained once, into one repository."""
    shutil.copytree(ROOT / "models", MODELS, dirs_exist_ok=True)
    if not (MODELS / "passages").exists():
        subprocess.run([sys.executable, ROOT / "docs/examples/passages.py", "train", MODELS], check=True)


def main() -> None:
    """Serve the models, and take pictures."""
    make_models()
    ports = ["--rest-port", "0", "--grpc-port", "0"]
    command = [ROOT / ".venv/bin/attention-server", *ports, "--models", MODELS, "--log-level", "warning"]
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
