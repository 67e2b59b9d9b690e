"""Comparison of two inputs or two models."""

import numpy as np
from playwright.sync_api import expect

from tests.web.reading import OTHER, SENTENCE, close, number


def test_two_inputs(visit, ask):
    """The page shows the same row of both inputs and the difference, as in the API; heads can be selected."""
    a, b = (ask("multi-head", text=text, outputs=["weights"])["outputs"]["weights"] for text in (SENTENCE, OTHER))
    page = visit(view="compare", model="multi-head", text=SENTENCE, **{"b.model": "multi-head", "b.text": OTHER})
    page.get_by_label("Head of A").select_option("1")
    stage = page.locator(".stage").first
    stage.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    rows = page.locator(".row-table tbody tr").all()
    shown = [[number(cell) for cell in row.locator("td").all_inner_texts()] for row in rows]
    row, mean = a[1, 2], b.mean(0)[2]
    assert close(shown, [row, mean, mean - row])


def test_it_opens_with_something_changed(visit, ask):
    """Without a second input, the word that is looked at most is hidden in B, and the difference is drawn."""
    page = visit(view="compare", model="multi-head", text=SENTENCE)
    expect(page.locator(".panels figure")).to_have_count(3)
    assert "b.hide=" in page.url
    expect(page.locator(".said").nth(1)).to_be_visible()
    assert page.locator(".said").first.inner_text() != page.locator(".said").nth(1).inner_text()


def test_two_models(visit, ask):
    """A second model reads the same input; for different lengths no difference is drawn."""
    page = visit(view="compare", model="multi-head", text=SENTENCE)
    expect(page.locator(".panels figure")).to_have_count(3)
    page.get_by_label("Model of B: multi-head").click()
    page.locator(".two-inputs .model").filter(has_text="encoder").click()
    page.locator("#b-text").fill(SENTENCE)
    expect(page.locator("figcaption").nth(1)).to_contain_text("encoder")
    expect(page.locator(".panels figure")).to_have_count(3)
    page.locator("#b-text").fill("my cat")
    expect(page.locator("figcaption").nth(2)).to_contain_text("at the tokens of both")
    page.locator("#b-text").fill("what now")
    expect(page.locator(".panels figure")).to_have_count(2)
    expect(page.locator(".aside")).to_contain_text("no difference")


def test_other_lengths_are_aligned_by_their_text(visit, ask):
    """For other lengths the difference is of the tokens of both, and ends at its largest; heads stand by change."""
    longer = f"my {SENTENCE} a"
    specs = [{"name": "weights", "layers": ["*"]}]
    a, b = (ask("encoder", text=text, outputs=specs)["outputs"] for text in (SENTENCE, longer))
    same = {name: b[name][:, 1:8, 1:8] - a[name] for name in a}
    change = {
        f"layer {name[-1]} head {head}": np.abs(each).sum() / 14
        for name in same
        for head, each in enumerate(same[name])
    }
    page = visit(
        view="compare",
        model="encoder",
        text=SENTENCE,
        sides="0,0",
        layer="1",
        **{"b.model": "encoder", "b.text": longer},
    )
    heads = page.locator(".changed-heads button")
    most = sorted(change, key=lambda name: -change[name])[:6]
    assert [text.rsplit(" ", 1) for text in heads.all_inner_texts()] == [[name, f"{change[name]:.2f}"] for name in most]
    expect(page.locator(".compare .legend")).to_contain_text(f"+{np.abs(same['weights@1'][0]).max():.2f} more in B")
    stage = page.locator(".stage").nth(2)
    stage.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    heads.first.click()
    layer, head = most[0].removeprefix("layer ").split(" head ")
    largest = np.abs(same[f"weights@{layer}"][int(head)]).max()
    expect(page.locator(".compare .legend")).to_contain_text(f"+{largest:.2f} more in B")


def test_long_inputs(visit):
    """Above 64 tokens the page draws the largest weights of both, and gives the reason why no difference is drawn."""
    text = " ".join([SENTENCE] * 10)
    page = visit(view="compare", model="encoder", text=text, **{"b.model": "encoder", "b.text": text})
    expect(page.locator(".panels figure")).to_have_count(2)
    expect(page.locator(".aside")).to_contain_text("the largest weights only")
