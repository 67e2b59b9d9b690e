"""Meet: what one word looks at, and what changes when a word is hidden."""

import re

import numpy as np
from playwright.sync_api import Page, expect

from tests.web.reading import SENTENCE, number


def cards(page: Page) -> list[list[str]]:
    """Return the labels and shares of each card."""
    texts = [card.locator(".answer-line").all_inner_texts() for card in page.locator(".card").all()]
    return [[part for line in lines for part in line.split("\n")] for lines in texts]


def near(shown: str, true: float) -> bool:
    return abs(number(shown) - true) <= 0.0051


def test_the_first_screen(visit, ask):
    """The first screen asks what "gave" looks at: an arc for each head with its weight, and what the model answers."""
    true = ask("multi-head", text=SENTENCE, outputs=["weights", "predictions"])
    page = visit()
    expect(page.get_by_role("heading", level=2)).to_have_text(re.compile("What does gave look at"))
    expect(page.locator(".meet .lead")).to_contain_text("From “gave”, 3 heads look at I, Tater and toy.")
    assert page.locator(".looked-at .ask").all_inner_texts() == ["I", "Tater", "toy"]
    labels = page.locator(".arc-label text")
    expect(labels).to_have_count(3)
    for head, label in enumerate(labels.all_text_contents()):
        name, share = label.split(" · ")
        assert name == f"head {head}"
        assert near(share, true["outputs"]["weights"][head, 1].max())
    for said, (label, share) in zip(true["predictions"], cards(page), strict=True):
        assert label == said["label"]
        assert near(share, said["probability"])
    assert [each.split(" · ")[1] for each in page.locator(".card h3").all_inner_texts()] == [
        f"{said['name']}?" for said in true["predictions"]
    ]
    heights = page.evaluate("[document.documentElement.scrollHeight, innerHeight]")
    assert heights[0] <= heights[1], "the first screen is one screen"


def test_a_hidden_word_changes_the_answer(visit, ask):
    """A hidden word has no weight; the answers before and after are the API's; undo and back ask nothing."""
    before = ask("multi-head", text=SENTENCE, outputs=["predictions"])["predictions"]
    allowed = [[each != "Tater" for each in SENTENCE.split()]]
    after = ask("multi-head", text=SENTENCE, mask={"allowed": allowed}, outputs=["weights", "predictions"])
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    size = page.evaluate("document.documentElement.scrollHeight")
    page.get_by_role("button", name="Hide Tater").click()
    expect(page.locator(".changes")).to_contain_text("“Tater” hidden")
    for first, now, (*shown,) in zip(before, after["predictions"], cards(page), strict=True):
        assert [shown[0], shown[2]] == [first["label"], now["label"]]
        assert near(shown[1], first["probability"])
        assert near(shown[3], now["probability"])
    share = page.locator(".arc-label text").all_text_contents()[1].split(" · ")[1]
    assert near(share, after["outputs"]["weights"][1, 1].max())
    assert np.allclose(after["outputs"]["weights"][:, :, 4], 0)
    assert page.evaluate("document.documentElement.scrollHeight") == size, "nothing moves"
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.get_by_role("button", name="undo all").click()
    expect(page.locator(".changes")).not_to_contain_text("hidden")
    page.keyboard.press("Tab")
    page.go_back()
    expect(page.locator(".changes")).to_contain_text("hidden")
    assert asked == []


def test_another_word_asks_nothing(visit, ask):
    """By click and by keyboard: another word's arcs, without a request; Delete hides the word."""
    true = ask("multi-head", text=SENTENCE, outputs=["weights"])["outputs"]["weights"]
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.get_by_role("button", name="toy", exact=True).click()
    expect(page.get_by_role("heading", level=2)).to_contain_text("does toy look")
    expect(page.locator(".card").first).to_contain_text("at “gave” the model answers")
    assert near(page.locator(".arc-label text").all_text_contents()[0].split(" · ")[1], true[0, 6].max())
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_contain_text("does a look")
    assert asked == []
    page.keyboard.press("Delete")
    expect(page.locator(".struck")).to_have_text(re.compile("^\\s*a"))


def test_many_heads_and_a_phone(visit, ask):
    """Of 24 heads the strongest four are met, and the atlas is one tap away; on a phone words stand in a column."""
    true = ask("encoder", text=SENTENCE, outputs=[{"name": "weights", "layers": ["*"]}])["outputs"]
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = visit(phone, model="encoder", text=SENTENCE, query=3)
    expect(page.locator(".card:not(.answer)")).to_have_count(4)
    strength = {
        f"layer {layer} · head {head}": np.delete(true[f"weights@{layer}"][head, 3], 3).max()
        for layer in (0, 1)
        for head in range(12)
    }
    strongest = sorted(strength, key=lambda name: -strength[name])[:4]
    assert page.locator(".card:not(.answer) h3").all_inner_texts() == strongest
    assert page.locator(".meet-figure").get_attribute("data-layout") == "column"
    tabs = [tab.bounding_box() for tab in page.locator(".tabs button").all()]
    assert len(tabs) == 6
    assert all(box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in tabs), "all are seen"
    page.get_by_role("button", name="Hide cat").tap()
    expect(page.locator(".struck")).to_have_count(1)
    expect(page.locator(".card.answer")).to_contain_text("vector of “cat”")
    page.get_by_role("button", name="Show cat").tap()
    expect(page.locator(".struck")).to_have_count(0)
    page.get_by_role("button", name="All 24 heads").tap()
    expect(page.locator(".thumbnail")).to_have_count(24)


def test_a_head_is_switched_off(visit, ask):
    """A head's switch shows the answer without it, as in the API; it is off in the atlas too, and in the link."""
    after = ask("multi-head", text=SENTENCE, ablate=[{"heads": [0]}], outputs=["predictions"])["predictions"]
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    heights = [card.bounding_box() for card in page.locator(".card").all()]
    page.get_by_role("button", name="And without head 0?").click()
    expect(page.locator(".changes")).to_contain_text("head 0 off")
    expect(page.get_by_role("switch", name="head 0")).to_have_attribute("aria-checked", "false")
    for now, (*shown,) in zip(after, cards(page), strict=True):
        assert shown[2] == now["label"]
        assert near(shown[3], now["probability"])
    assert "off=0.0" in page.url
    assert [card.bounding_box() for card in page.locator(".card").all()] == heights
    page.get_by_role("group", name="Views").get_by_text("Atlas").click()
    expect(page.get_by_role("button", name="switch on")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.get_by_role("button", name="switch on").click()
    expect(page.get_by_role("button", name="switch off")).to_be_visible()
    assert asked == []


def test_a_temperature(visit, ask):
    """The temperature's slider, by keyboard: weights are those of the API at this temperature."""
    true = ask("multi-head", text=SENTENCE, score_temperature=4, outputs=["weights"])["outputs"]["weights"]
    page = visit(model="multi-head", text=SENTENCE)
    slider = page.get_by_label("temperature")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".changes")).to_contain_text("temperature 4")
    for head, label in enumerate(page.locator(".arc-label text").all_text_contents()):
        assert near(label.split(" · ")[1], true[head, 1].max())


def test_a_long_sequence_has_gaps(visit, ask):
    """Of 140 words those that are looked at stand in the picture, with the sizes of the gaps."""
    text = " ".join([SENTENCE] * 20)
    weights = ask("encoder", text=text, outputs=[{"name": "weights", "layers": ["*"], "rows": [70]}])["outputs"]
    page = visit(model="encoder", text=text, query=70)
    page.locator(".arc").first.wait_for(state="attached")
    words = page.locator(".words [data-key]")
    shown = {int(each) for each in words.evaluate_all("all => all.map((each) => each.dataset.key)")}
    gaps = [int(text.split()[1]) for text in page.locator(".gap").all_inner_texts()]
    assert len(shown) + sum(gaps) == 140
    for name in page.locator(".card:not(.answer) h3").all_inner_texts():
        layer, head = re.fullmatch(r"layer (\d) · head (\d+)", name).groups()
        assert int(weights[f"weights@{layer}"][int(head), 0].argmax()) in shown
    page.locator(".gap button").first.click()
    expect(page.locator(".words [aria-pressed=true]")).to_have_count(1)
    assert "query=70" not in page.url
