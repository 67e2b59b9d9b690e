"""Access to the page: accessibility, light and dark, phones, proxies, tokens."""

import re
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import expect
from serving import start_server

from tests.security.conftest import make_token
from tests.web.conftest import watched
from tests.web.reading import NOTE, SENTENCE, violations

VIEWS = {
    "meet": {"hide": 4},
    "steps": {"track": "stages", "step": 5, "query": 1},
    "track": {"view": "steps", "step": 4, "query": 1},
    "atlas": {"model": "encoder", "find": "gave -> toy"},
    "one layer": {"view": "atlas", "tab": "layer", "lock": 1},
    "rollout": {"view": "atlas", "tab": "rollout", "model": "encoder"},
    "compare": {},
    "translate": {"model": "cross-attention", "memory": "twenty one", "text": "", "said": 2},
    "generate": {"model": "decoder", "text": "the cat sat . my dog ran", "said": 3, "draw": 1, "read": "1.0"},
}
SHOWN = {
    "meet": ".arc",
    "steps": "b.weight",
    "track": ".flow .number",
    "atlas": ".thumbnail.chosen",
    "one layer": ".row-table td",
    "rollout": ".rollout canvas",
    "compare": ".panels canvas",
    "translate": ".spoken .said-word",
    "generate": ".written .own",
}
SCREENS = [(scheme, width, height) for width, height in ((1280, 900), (390, 844)) for scheme in ("light", "dark")]


# Buttons that a finger would miss.
SMALL = """() => [...document.querySelectorAll("button, summary, select, .top a:not(.skip)")].filter((each) => {
    const { width, height } = each.getBoundingClientRect();
    return each.checkVisibility() && width && Math.max(width, height) < 43.5;
}).map((each) => each.outerHTML.slice(0, 90))"""


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(view, visit):
    """No view has a violation known to axe-core, light or dark, on a desktop or a phone, where targets are large."""
    page = visit(**{"view": view, "model": "multi-head", "text": SENTENCE, **VIEWS[view]})
    page.locator(SHOWN[view]).first.wait_for(state="attached")
    page.locator(".view[aria-busy=false]:not(.stale)").wait_for()
    expect(page.locator(".note").first).to_contain_text(NOTE)  # with all weights
    for scheme, width, height in SCREENS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        assert violations(page) == [], (scheme, width)
        across = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(across) <= 0, (scheme, width)
        assert width > 400 or page.evaluate(SMALL) == []


def test_behind_a_proxy_under_a_path(browser, site):
    """Files, requests and the link to the API's document are relative: the page works under any path."""
    with watched(browser, f"{site.url}/under/a/path/") as page:
        page.route(
            f"{site.url}/under/a/path/**",
            lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/under/a/path", ""))),
        )
        page.goto(f"{site.url}/under/a/path/#view=atlas&tab=layer&model=multi-head&text=I+gave+my+cat+Tater+a+toy")
        expect(page.locator(".panels figure")).to_have_count(4)
        link = page.get_by_role("link", name="API").evaluate("link => link.href")
        assert link == f"{site.url}/under/a/path/docs"


def test_every_stage_is_accessible(visit):
    """No stage has a violation, dark, on a phone, masked."""
    phone = {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
    page = visit(phone, view="steps", track="stages", model="multi-head", text=SENTENCE, query=2, causal="top_left")
    for stage in range(9):
        expect(page.locator(".count")).to_have_text(f"{stage + 1} / 9")
        assert violations(page) == [], stage
        page.keyboard.press("ArrowRight")


def test_light_and_dark_by_hand(visit):
    """The button changes the colour scheme, against the system's, and the choice is kept."""
    page = visit({"color_scheme": "light"}, model="multi-head", text=SENTENCE)
    colour = "getComputedStyle(document.querySelector('.meet-card')).backgroundColor"
    page.locator(".meet-card").wait_for()
    before = page.evaluate(colour)
    page.get_by_role("button", name="Light or dark").click()
    chosen = page.evaluate(colour)
    assert chosen != before
    page.reload()
    page.locator(".meet-card").wait_for()
    assert page.evaluate(colour) == chosen


def test_the_menu_the_drawer_and_an_error_are_accessible(visit):
    """axe-core finds nothing in the models' menu, in the drawer, and beside an error; Escape closes both."""
    page = visit(model="multi-head", text="I gave my cat Bob a toy")
    expect(page.get_by_role("alert")).to_contain_text("Bob")
    assert violations(page) == []
    page.get_by_label("Model: multi-head").click()
    expect(page.locator(".models .example").first).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(page.locator(".models .example").first).to_be_hidden()
    page.get_by_role("button", name="Input").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.console_errors.clear()  # the browser logs a response of 400


def test_a_server_that_asks_for_a_token(browser, served_models, tmp_path):
    """If the server requires tokens, the page has a field, rejects a wrong token, and keeps the token in the tab."""
    token, lines = make_token("reader")
    (tmp_path / "tokens.toml").write_text(lines)
    with (
        start_server(served_models, "--tokens", tmp_path / "tokens.toml") as guarded,
        watched(browser, guarded.url) as page,
    ):
        with page.expect_response("**/v1/models") as refused:
            page.goto(f"{guarded.url}/#view=atlas&tab=layer&model=multi-head&text=I+gave+my+cat+Tater+a+toy")
        assert (
            refused.value.headers["www-authenticate"] == 'Bearer realm="attention"'
        )  # so that the browser shows no dialog of its own
        field = page.get_by_label("This server asks for a bearer token")
        expect(field).to_be_visible()
        assert violations(page) == []
        field.fill("attn_wrong")
        page.get_by_role("button", name="Use it").click()
        expect(field).to_have_value("")
        field.fill(token)
        page.get_by_role("button", name="Use it").click()
        expect(page.locator(".panels figure")).to_have_count(4)
        assert token not in page.url
        page.reload()
        expect(page.locator(".panels figure")).to_have_count(4)
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.console_errors.clear()  # the browser logs responses of 401


def test_a_refusal_names_its_field(visit):
    """The page shows the server's error message."""
    page = visit(view="heads", model="multi-head", text="I gave my cat Bob a toy")
    expect(page.get_by_role("alert")).to_contain_text("text: ")
    expect(page.get_by_role("alert")).to_contain_text("Bob")
    page.console_errors.clear()  # the browser logs a response of 400


def test_zoom(visit):
    """At 200 and at 400 percent of a screen of 1280 pixels nothing is wider than the screen, in any view."""
    page = visit({"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2})
    for view, own in VIEWS.items():
        state = {"view": view, "model": "multi-head", "text": SENTENCE, **own}
        page.evaluate("hash => { location.hash = hash }", urlencode(state, quote_via=quote))
        page.locator(SHOWN[view]).first.wait_for(state="attached")
        for width in (640, 320):
            page.set_viewport_size({"width": width, "height": 450})
            page.locator(".view[aria-busy=false]:not(.stale)").wait_for()
            # A picture is drawn anew in the frame after its place has another width.
            page.wait_for_function("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


COLOURS = {
    "meet": (".meter span", "backgroundColor"),
    "atlas": (".thumbnail canvas", "forcedColorAdjust"),
    "generate": (".written .own", "backgroundColor"),
}


@pytest.mark.parametrize("view", COLOURS)
def test_forced_colours(view, visit):
    """With forced colours weights keep theirs, and what is chosen is outlined."""
    page = visit(**{"view": view, "model": "multi-head", "text": SENTENCE, **VIEWS[view]})
    selector, style = COLOURS[view]
    shown = page.locator(selector).first
    shown.wait_for(state="attached")
    colour = f"each => getComputedStyle(each).{style}"
    before = shown.evaluate(colour)
    page.emulate_media(forced_colors="active")
    expect(page.locator(".tabs [aria-pressed=true]")).to_have_css("outline-style", "solid")
    after = shown.evaluate(colour)
    assert after == (before if style == "backgroundColor" else "none")
    if view == "meet":
        arc = page.locator(".arc").first
        red, green, blue = (
            int(part) for part in re.findall(r"\d+", arc.evaluate("each => getComputedStyle(each).stroke"))
        )
        assert arc.evaluate("each => each.parentNode.getAttribute('stroke')") == f"#{red:02x}{green:02x}{blue:02x}"


# The mean of a canvas's pixels that are painted, 0..255.
BRIGHTNESS = """canvas => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const painted = [...data.keys()].filter((at) => at % 4 === 0 && data[at + 3] === 255);
    return painted.reduce((sum, at) => sum + data[at], 0) / painted.length;
}"""


def test_print(visit):
    """Paper has the picture and its numbers without controls, in light colours where the screen is dark."""
    page = visit({"color_scheme": "dark"}, view="atlas", tab="layer", model="multi-head", text=SENTENCE, lock=1)
    panel = page.locator(".panels canvas").first
    page.locator(".row-table td").first.wait_for()
    assert panel.evaluate(BRIGHTNESS) < 128
    page.emulate_media(media="print")
    expect(page.locator(".top")).to_be_hidden()
    expect(page.locator(".toolbar")).to_be_hidden()
    expect(page.locator(".row-table td").first).to_be_visible()
    assert panel.evaluate(BRIGHTNESS) > 128
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    page.console_errors.clear()  # the browser advises on canvases that are read


def test_the_reference_has_both_themes(visit, site):
    """/docs is light or dark as the page is, by the system or by choice, and leads back to the page."""
    page = visit({"color_scheme": "dark"}, model="multi-head", text=SENTENCE)
    paper = "getComputedStyle(document.body).backgroundColor"
    turned = "document.getElementById('swagger-ui').style.filter"
    page.goto(f"{site.url}/docs")
    page.locator(".opblock").first.wait_for()
    assert (page.evaluate(paper), page.evaluate(turned)[:6]) == ("rgb(16, 19, 25)", "invert")
    page.get_by_role("link", name="The page of this server").click()
    page.get_by_role("button", name="Light or dark").click()
    page.goto(f"{site.url}/docs")
    page.locator(".opblock").first.wait_for()
    assert (page.evaluate(paper), page.evaluate(turned)) == ("rgb(255, 255, 255)", "")
