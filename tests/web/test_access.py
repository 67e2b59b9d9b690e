"""Access to the page: accessibility, light and dark, phones, proxies, tokens."""

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
