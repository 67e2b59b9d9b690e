"""Generation by a decoder: the tokens of the client, what each of them read, and the way back."""

import numpy as np
import pytest
from attention_client import AttentionClient
from playwright.sync_api import expect

from tests.web.reading import number

TEXT = "the cat sat on a mat . my dog ran to the house and saw it"
STATE = {"view": "generate", "model": "decoder", "text": TEXT}
OWN = ".written .own"


@pytest.fixture(scope="module")
def client(site):
    """A client of the same server."""
    with AttentionClient(site.grpc) as client:
        yield client


def said(page):
    """Return the tokens that were written."""
    return page.locator(OWN).all_inner_texts()


def told(page):
    """Return the weights in the names of the tokens, in their order."""
    labels = [each.get_attribute("aria-label") for each in page.locator(".written button").all()]
    return [number(label.rsplit(", ", 1)[1]) for label in labels if ", " in label]


def test_a_text_grows_token_by_token(visit, client):
    """Tokens are those of the client's greedy generation, a row behind a kept prefix each; a click shows its row."""
    true = list(client.generate("decoder", TEXT, tokens=6, outputs=[{"name": "weights", "layers": ["*"]}]))
    page = visit(**STATE)
    sent: list[dict] = []
    expect(page.locator(".written button")).to_have_count(len(TEXT.split()))
    page.on("request", lambda each: sent.append(each.post_data_json) if each.url.endswith(":attend") else None)
    for count in (1, 2):
        page.get_by_role("button", name="Next token").click()
        expect(page.locator(OWN)).to_have_count(count)
    page.get_by_role("button", name="Write 20").click()
    expect(page.locator(OWN)).to_have_count(22)
    assert said(page)[:6] == [step.token for step in true]
    assert len(sent) == 21  # what comes first was known
    assert all(len(body["token_ids"]) == 1 and body["memory"] and body["extend"] for body in sent)
    page.locator(OWN).nth(4).click()
    weights = [true[4].result[f"weights@{layer}"][:, 0] for layer in (0, 1)]
    readings = {("", "mean"): np.mean(weights, (0, 1)), ("1", "mean"): weights[1].mean(0), ("1", "1"): weights[1][1]}
    for (layer, head), row in readings.items():
        page.get_by_label("Layer", exact=True).select_option(layer)
        if layer:
            page.get_by_label("Head", exact=True).select_option(head)
        expect(page.locator(".card h3").first).to_contain_text(f"layer {layer}" if layer else "all heads")
        assert np.abs(np.subtract(told(page), row)).max() <= 0.0051
        drawn = {int(each.get_attribute("data-to")) for each in page.locator(".written-figure .line").all()}
        assert drawn == {key for key in np.argsort(-row)[:8] if row[key] >= 0.03}
    shares = [
        number(each)
        for each in page.locator(".card").last.locator(".answer-line > span:nth-child(2)").all_inner_texts()
    ]
    row = readings["1", "1"]
    assert np.abs(np.subtract(shares, [row[:7].sum(), row[7:16].sum(), row[16:].sum()])).max() <= 0.0051
    assert len(sent) == 21


def test_drawn_tokens(visit, client):
    """A link holds how tokens are drawn: the same as the client's for a seed; back shows the draw before, unasked."""
    first, second = (
        [step.token for step in client.generate("decoder", TEXT, tokens=5, sample={"temperature": 1.5, "seed": seed})]
        for seed in (3, 4)
    )
    assert first != second
    page = visit(**STATE, said=5, draw=1.5, seed=3)
    expect(page.locator(OWN)).to_have_text(first)
    page.get_by_role("button", name="Draw anew").click()
    expect(page.locator(OWN)).to_have_text(second)
    assert "seed=4" in page.url
    page.route("**/*:attend", lambda route: route.abort())
    page.go_back()
    expect(page.locator(OWN)).to_have_text(first)
    page.go_forward()
    expect(page.locator(OWN)).to_have_text(second)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(OWN)).to_have_count(0)
    page.go_back()
    expect(page.locator(OWN)).to_have_text(second)


def test_stop(visit):
    """Stop ends the writing at once, and keeps what was written."""
    page = visit(**STATE)
    expect(page.locator(".written button")).to_have_count(len(TEXT.split()))
    page.route("**/*:attend", lambda route: route.continue_() if page.locator(OWN).count() < 4 else None)
    page.get_by_role("button", name="Write 20").click()
    expect(page.locator(OWN)).to_have_count(4)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Write 20")).to_be_enabled()
    expect(page.locator(OWN)).to_have_count(4)
    assert "said=4" in page.url


def test_a_hidden_word_and_a_head_that_is_off(visit, ask):
    """With a word hidden and a head off, tokens are those of the API with the same mask and ablation."""
    page = visit(**STATE, said=3, read="1.1")
    expect(page.locator(OWN)).to_have_count(3)
    page.get_by_role("button", name="Hide cat").click()
    expect(page.locator(".changes")).to_contain_text("“cat” hidden")
    page.get_by_role("button", name="switch off").click()
    expect(page.locator(".changes")).to_contain_text("head 1 off")
    expect(page.locator(OWN)).to_have_count(3)
    expect(page.locator(".view[aria-busy=false]:not(.stale)")).to_be_visible()
    text = TEXT
    for shown in said(page):
        keys = text.split()
        given = {
            "mask": {"allowed": [[at != 1 for at in range(len(keys))]]},
            "ablate": [{"layers": ["1"], "heads": [1]}],
        }
        (next_,) = ask("decoder", text=text, outputs=["predictions"], **given)["predictions"]
        assert shown == next_["label"]
        text += f" {next_['label']}"
    assert len(text.split()) == len(TEXT.split()) + 3


def test_a_forgotten_prefix_and_an_absent_server(visit, site):
    """A prefix that the server has lost is sent again; without a server the text stays, dimmed."""
    page = visit(**STATE, said=2)
    expect(page.locator(OWN)).to_have_count(2)
    before = said(page)
    forgotten = page.request.get(f"{site.url}/v1/models/decoder/memories").json()["memories"]
    for memory in forgotten:
        assert page.request.delete(f"{site.url}/v1/models/decoder/memories/{memory['id']}").ok
    page.get_by_role("button", name="Next token").click()
    expect(page.locator(OWN)).to_have_count(3)
    assert said(page)[:2] == before
    page.route("**/*:attend", lambda route: route.abort())
    page.get_by_role("button", name="Next token").click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator(".view.stale")).to_be_visible()
    expect(page.locator(OWN)).to_have_count(3)
    page.unroute("**/*:attend")
    page.get_by_role("button", name="Ask now").click()
    expect(page.locator(OWN)).to_have_count(4)
    page.console_errors.clear()  # the browser logs what failed
