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
    page.locator("#b-text").fill("I gave")
    expect(page.locator(".panels figure")).to_have_count(2)
    expect(page.locator(".aside")).to_contain_text("no difference")
    assert np.isfinite(ask("encoder", text="I gave", outputs=["weights"])["outputs"]["weights"]).all()


def test_long_inputs(visit):
    """Above 64 tokens the page draws the largest weights of both, and gives the reason why no difference is drawn."""
    text = " ".join([SENTENCE] * 10)
    page = visit(view="compare", model="encoder", text=text, **{"b.model": "encoder", "b.text": text})
    expect(page.locator(".panels figure")).to_have_count(2)
    expect(page.locator(".aside")).to_contain_text("the largest weights only")
