"""Who may read the page: everybody, in light and dark, on a phone, with a token where the server asks for one."""

import json

import pytest
from playwright.sync_api import Page, Route, expect
from serving import ROOT

from tests.web.reading import SENTENCE

AXE = ROOT / "server/web/node_modules/axe-core/axe.min.js"
VIEWS = {
    "steps": {"step": 5, "query": 1},
    "heads": {"lock": 1},
    "compare": {},
    "translate": {"model": "cross-attention", "memory": "twenty one", "text": ""},
}
SHOWN = {"steps": "b.weight", "heads": ".row-table td", "compare": ".panels canvas", "translate": ".spoken"}
SCREENS = [
    (scheme, width, height) for width, height in ((1280, 900), (390, 844)) for scheme in ("light", "dark")
]


def violations(page: Page) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(({violations}) => violations)")
    return [json.dumps([each["id"], [node["html"][:200] for node in each["nodes"]]]) for each in found]


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(view, visit):
    """No view has a violation that axe-core knows of, in either colour scheme, on a desk or a phone, nor does it spill."""
    page = visit(**{"view": view, "model": "multi-head", "text": SENTENCE, **VIEWS[view]})
    page.locator(SHOWN[view]).first.wait_for()
    if view == "translate":
        page.get_by_role("button", name="Next word").click()
        page.locator(".panels canvas").first.wait_for()
    for scheme, width, height in SCREENS:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": height})
        assert violations(page) == [], (scheme, width)
        across = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(across) <= 0, (scheme, width)


def test_every_stage_is_accessible(visit):
    """No stage has a violation, dark, on a phone, masked."""
    phone = {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
    page = visit(phone, model="multi-head", text=SENTENCE, query=2, causal="top_left")
    for stage in range(9):
        expect(page.locator(".count")).to_have_text(f"{stage + 1} / 9")
        assert violations(page) == [], stage
        page.keyboard.press("ArrowRight")


def test_light_and_dark_by_hand(visit):
    """The button turns the page over, against the system."""
    page = visit({"color_scheme": "light"}, view="heads", model="multi-head", text=SENTENCE)
    colour = "getComputedStyle(document.querySelector('main')).backgroundColor"
    before = page.evaluate(colour)
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate(colour) != before


def test_a_server_that_asks_for_a_token(visit, site):
    """A 401 shows a field; what is typed goes with every request, and is kept for the tab alone."""
    page = visit(view="heads", model="multi-head", text=SENTENCE)
    seen: list[str | None] = []

    def guard(route: Route) -> None:
        """Stands for a proxy in front of the server that wants to know who asks."""
        sent = route.request.headers.get("authorization")
        seen.append(sent)
        if sent == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "who asks?"}})

    page.route("**/v1/**", guard)
    page.reload()
    page.get_by_label("This server asks for a bearer token").fill("secret")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator(".panels figure")).to_have_count(4)
    assert seen[0] is None
    assert set(seen[1:]) == {"Bearer secret"}
    assert "secret" not in page.url
    page.complaints.clear()  # the browser itself says that an answer was 401


def test_a_refusal_names_its_field(visit):
    """What the server refuses is told in its words."""
    page = visit(view="heads", model="multi-head", text="I gave my cat Bob a toy")
    expect(page.get_by_role("alert")).to_contain_text("text: ")
    expect(page.get_by_role("alert")).to_contain_text("Bob")
    page.complaints.clear()  # the browser itself says that an answer was 400
