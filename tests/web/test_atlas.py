"""The atlas: all heads of all layers, search, badges, two beside each other, and rollout."""

import json
import re
from collections import Counter
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from tests.web.reading import SENTENCE, number


@pytest.fixture(scope="module")
def true(ask):
    return ask("encoder", text=SENTENCE, outputs=[{"name": "weights", "layers": ["*"]}])["outputs"]


def looks(page: Page) -> dict[str, float]:
    """Read what the large head's word looks at."""
    line = page.locator(".looks").first.inner_text().partition(": ")[2].partition(" · entropy")[0]
    return {token: number(share) for token, share in (part.rsplit(" ", 1) for part in line.split(" · "))}


def test_a_search_finds_the_heads(visit, true):
    """ "gave -> toy" marks the heads whose weight is at least 0.3, with the weight, and opens the strongest."""
    page = visit(view="atlas", model="encoder", text=SENTENCE)
    expect(page.locator(".thumbnail")).to_have_count(24)
    page.get_by_label("find heads").fill("gave -> TOY")
    page.keyboard.press("Enter")
    expect(page.locator(".looks").first).to_contain_text("from gave")
    weights = {f"{layer}.{head}": true[f"weights@{layer}"][head, 1, 6] for layer in (0, 1) for head in range(12)}
    answering = {pair: f"{weight:.2f}" for pair, weight in weights.items() if weight >= 0.3}
    shown = page.locator(".thumbnail:has(.found)")
    found = {each.get_attribute("data-head"): each.locator(".found").inner_text() for each in shown.all()}
    assert found == answering
    best = max(weights, key=lambda pair: weights[pair])
    expect(page.locator(".thumbnail.chosen")).to_have_attribute("data-head", best)
    assert abs(looks(page)["toy"] - weights[best]) <= 0.0051
    page.get_by_label("find heads").fill("gave -> nothing")
    page.keyboard.press("Enter")
    expect(page.locator(".find")).to_contain_text("no token is “nothing”")


def test_arrow_keys_and_two_beside_each_other(visit, true):
    """Arrow keys choose among heads and ask nothing; with shift, a click sets a second head beside the first."""
    page = visit(view="atlas", model="encoder", text=SENTENCE, layer="0", head=0, query=2)
    page.locator(".thumbnail").first.wait_for()
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.locator(".thumbnail.chosen").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".large-head h2")).to_have_text("layer 1 · head 1")
    for token, share in looks(page).items():
        assert abs(share - true["weights@1"][1, 2, SENTENCE.split().index(token)]) <= 0.0051
    page.locator(".thumbnail").nth(5).click(modifiers=["Shift"])
    expect(page.locator(".large-head h2")).to_have_text(["layer 1 · head 1", "layer 0 · head 5"])
    assert asked == []
    page.go_back()
    expect(page.locator(".large-head h2")).to_have_text("layer 1 · head 1")


def badge_of(weights: np.ndarray) -> str | None:
    """Return the badge of a head of weights [T, T] without a mask: the first kind of key with half of its weight."""
    rows = weights.astype(float)
    length = len(rows)
    entropy = -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1).mean()
    shares = {
        "previous": np.trace(rows, -1) / length,
        "next": np.trace(rows, 1) / length,
        "self": np.trace(rows) / length,
        "first": rows[:, 0].mean(),
    }
    if (most := next((name for name, share in shares.items() if share >= 0.5), None)) is not None:
        return most
    return "broad" if entropy / np.log(length) >= 0.85 else None


def test_a_filter_and_an_order(visit, true):
    """Heads sorted broad first stand by their mean entropy; a badge's filter leaves those with the badge."""
    page = visit(view="atlas", model="encoder", text=SENTENCE)
    page.get_by_label("sorted").select_option("broad")

    def bits(rows: np.ndarray) -> float:
        rows = rows.astype(float)
        return float(-(rows * np.log2(np.where(rows > 0, rows, 1))).sum(-1).mean())

    spread = {f"{layer}.{head}": bits(true[f"weights@{layer}"][head]) for layer in (0, 1) for head in range(12)}
    expect(page.locator(".atlas-grid.flat")).to_be_visible()
    order = [each.get_attribute("data-head") for each in page.locator(".thumbnail").all()]
    assert order == sorted(spread, key=lambda pair: -spread[pair])
    badges = Counter(filter(None, (badge_of(true[f"weights@{layer}"][head]) for layer in (0, 1) for head in range(12))))
    assert badges
    pills = page.locator(".atlas-tools .pill[title]")
    assert dict(pill.inner_text().split() for pill in pills.all()) == {name: str(n) for name, n in badges.items()}
    for pill in pills.all():
        badge, count = pill.inner_text().split()
        pill.click()
        expect(page.locator(".thumbnail:not(.dim)")).to_have_count(int(count))
        assert all(badge[:3] in (text or "") for text in page.locator(".thumbnail:not(.dim)").all_inner_texts())
        pill.click()


def test_special_tokens_are_hidden_and_the_rest_renormalised(browser, site, visit, ask):
    """Without special tokens the shares are those of the words that stay."""
    text = "[a] gave my cat"
    true = ask("encoder", text=text, outputs=[{"name": "weights", "layers": ["1"]}])["outputs"]["weights"]
    page = visit(view="atlas", model="encoder", text=text, layer="1", head=4, query=2)
    page.locator(".thumbnail").first.wait_for()
    expect(page.locator(".pill").filter(has_text="hide")).to_have_count(0)  # a word in brackets is none

    def with_special(route):
        answer = route.fetch()
        content = answer.json()
        content["results"][0]["token_offsets"][0] = {"start": 0, "end": 0}
        route.fulfill(response=answer, json=content)

    page.route("**/*:attend", with_special)
    page.reload()
    page.get_by_role("button", name=re.compile("hide")).click()
    rest = true[4, 2, 1:] / true[4, 2, 1:].sum()
    tokens = text.split()[1:]
    shown = looks(page)
    shown.pop("[a]", None)
    for token, share in shown.items():
        assert abs(share - rest[tokens.index(token)]) <= 0.0051


def test_rollout(visit, true):
    """Through the layers, each row is Abnar and Zuidema's rollout of the chosen word."""
    page = visit({"reduced_motion": "reduce"}, view="atlas", tab="rollout", model="encoder", text=SENTENCE, query=1)
    page.locator(".rollout canvas").first.wait_for()
    read = np.eye(7)
    for layer in (0, 1):
        read = (true[f"weights@{layer}"].astype(float).mean(0) + np.eye(7)) / 2 @ read
        panel = page.locator(".stage")
        panel.focus()
        page.keyboard.press("ArrowDown")
        box = panel.bounding_box()
        assert box
    panel = page.locator(".stage")
    box = panel.bounding_box()
    assert box
    panel.hover(position={"x": box["width"] - 70, "y": box["height"] - 20})
    tip = page.locator(".tip").inner_text()
    name, value = re.fullmatch(r"after 1 → (\w+): ([\d.<]+)", tip).groups()
    assert abs(number(value) - read[1, SENTENCE.split().index(name)]) <= 6e-5


def test_144_heads_in_one_screen(browser, site, visit):
    """144 heads stand in one screen of 1440 by 900, drawn without a request of their own."""
    page = visit({"viewport": {"width": 1440, "height": 900}}, view="atlas", model="encoder", text=SENTENCE)

    def many(route):
        answer = route.fetch()
        models = answer.json()
        for model in models["models"]:
            if model["name"] == "encoder":
                first, last = model["manifest"]["layers"]
                model["manifest"]["layers"] = [{**first, "name": str(at)} for at in range(11)] + [
                    {**last, "name": "11"}
                ]
        route.fulfill(response=answer, json=models)

    def layers(route):
        body = route.request.post_data_json
        for spec in body["outputs"]:
            if isinstance(spec, dict) and spec.get("layers"):
                spec["layers"] = ["1" if spec["layers"] == ["11"] else "0"]
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/models", many)
    page.route("**/*:attend", layers)
    page.reload()
    expect(page.locator(".thumbnail")).to_have_count(144)
    bottom = page.locator(".thumbnail").last.evaluate("each => each.getBoundingClientRect().bottom")
    assert bottom <= 900


def test_a_long_text(visit, ask):
    """Above 64 tokens badges, entropies and rollout are of whole rows, and so is the row of the word that asks."""
    words = (SENTENCE.split() * 15)[:100]
    text = " ".join(words)
    outputs = ask("encoder", text=text, outputs=[{"name": "weights", "layers": ["*"]}])["outputs"]
    weights = [outputs[f"weights@{layer}"].astype(float) for layer in (0, 1)]
    rows = weights[1][:, 40]
    head = int(np.argmin(rows.max(-1)))
    page = visit(view="atlas", model="encoder", text=text, query=40, layer="1", head=head)
    page.get_by_label("sorted").select_option("narrow")
    expect(page.locator(".atlas-grid.flat")).to_be_visible()
    spread = {
        f"{layer}.{head}": -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1).mean()
        for layer in (0, 1)
        for head, rows in enumerate(weights[layer])
    }
    order = [each.get_attribute("data-head") for each in page.locator(".thumbnail").all()]
    assert order == sorted(spread, key=lambda pair: spread[pair])
    badges = Counter(filter(None, (badge_of(rows) for heads in weights for rows in heads)))
    pills = page.locator(".atlas-tools .pill[title]")
    assert dict(pill.inner_text().split() for pill in pills.all()) == {name: str(n) for name, n in badges.items()}
    expect(page.locator(".looks")).to_contain_text("entropy")
    bits = float(-(rows[head] * np.log2(rows[head])).sum())
    said, shown = page.locator(".looks").inner_text().rsplit(" · entropy ", 1)
    assert abs(number(shown.split()[0]) - bits) <= 0.0051
    shares = [number(part.rsplit(" ", 1)[1]) for part in said.split(" · ")]
    assert np.abs(np.subtract(shares, -np.sort(-rows[head])[:3])).max() <= 0.0051
    page.get_by_role("button", name="Through the layers").click()
    panel = page.locator(".rollout .stage")
    panel.focus()
    page.keyboard.press("ArrowDown")
    read = np.eye(100)
    for heads in weights:
        read = (heads.mean(0) + np.eye(100)) / 2 @ read
    box = panel.bounding_box()
    assert box
    panel.hover(position={"x": box["width"] - 3, "y": box["height"] - 3})
    value = page.locator(".tip").inner_text().rsplit(": ", 1)[1]
    assert abs(number(value) - read[40, 99]) <= 6e-5


def test_many_weights_arrive_in_portions(visit, site):
    """Of many weights a layer is drawn before the rest is asked for, which can be given up, and asked for again."""
    asked: list[dict] = []
    held: list[Route] = []

    def hold(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        if "rows" not in body["outputs"][0]:  # the whole row of the word that asks
            asked.append(body)
            if len(asked) == 2:
                return held.append(route)
        return route.continue_()

    page = visit()
    page.locator(".arc").first.wait_for(state="attached")
    page.goto("about:blank")  # only the page that opens next is counted: a changed hash would be asked for, too
    page.route("**/*:attend", hold)
    text = " ".join((SENTENCE.split() * 74)[:512])
    page.goto(f"{site.url}/#{urlencode({'view': 'atlas', 'model': 'encoder', 'text': text}, quote_via=quote)}")
    expect(page.locator(".arriving")).to_contain_text("1 of 2 layers are here")
    expect(page.locator(".large-head h2")).to_have_text("layer 0 · head 0")
    expect(page.locator(".view[aria-busy=false]:not(.stale)")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".arriving")).to_contain_text("Stopped: 1 of 2 layers are here")
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".arriving")).to_have_count(0)
    expect(page.locator(".large-head h2")).to_have_text("layer 1 · head 0")
    outputs = [[(each["name"], each["layers"]) for each in body["outputs"] if "layers" in each] for body in asked]
    first, second, again, counted = outputs
    assert first == [("weights", ["0"])]
    assert second == again
    assert ("weights", ["1"]) in again
    assert counted == [("statistics", ["0"]), ("statistics", ["1"])], "badges are asked for behind the picture, at once"
