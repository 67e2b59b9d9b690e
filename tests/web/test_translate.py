"""Word-by-word translation over a memory, with a growing alignment."""

import numpy as np
from attention_client import AttentionClient
from attention_client.api.translate import translate
from playwright.sync_api import expect

from tests.web.reading import close, number

TEXT = "four thousand twenty one"


def test_the_alignment_grows_word_by_word(visit, site):
    """Each word is that of the client's translation, with the weights of its request; one memory serves all."""
    with AttentionClient(site.grpc) as client:
        true = translate(client, "cross-attention", TEXT)
    page = visit(view="translate", model="cross-attention", text="", memory=TEXT)
    memories: list[str] = []
    page.on("request", lambda sent: memories.append(sent.url) if sent.url.endswith("/memories") else None)
    words = page.locator(".spoken .said-word")
    for count, word in enumerate(true.words, 1):
        page.get_by_role("button", name="Next word").click()
        expect(words).to_have_count(count)
        expect(words.last).to_contain_text(word)
        expect(page.locator("button.chip")).to_have_count(count)
    page.get_by_role("button", name="To the end").click()
    expect(page.locator(".spoken .mark")).to_contain_text("[END]")
    expect(page.get_by_role("button", name="Next word")).to_be_disabled()
    assert len(memories) == 1
    assert page.locator("span.chip").all_inner_texts() == list(true.memory_tokens)
    lines = page.locator(".line")
    aligned = {(i, int(row[3].argmax())) for i, row in enumerate(true.weights)}
    shown = {(int(each.get_attribute("data-from")), int(each.get_attribute("data-to"))) for each in lines.all()}
    assert aligned <= shown  # the lines are of head 3, which aligns
    page.get_by_role("button", name="all", exact=True).click()
    for i in range(len(true.words)):
        page.locator("button.chip").nth(i).click()
        rows = page.locator(".row-table tbody tr").all()
        shown = [[number(cell) for cell in row.locator("td").all_inner_texts()] for row in rows]
        assert close(shown[:-1], true.weights[i])
        assert close(shown[-1], np.mean(true.weights[i], 0))


def test_a_forgotten_memory_is_sent_again(visit, site):
    """If the server has lost the memory between two words, the page creates it again and continues."""
    page = visit(view="translate", model="cross-attention", text="", memory="twenty one")
    with page.expect_response("**/memories") as created:
        page.get_by_role("button", name="Next word").click()
    expect(page.locator(".spoken .said-word")).to_have_count(1)
    identity = created.value.json()["id"]
    assert page.request.delete(f"{site.url}/v1/models/cross-attention/memories/{identity}").ok
    with page.expect_response(lambda answer: answer.status == 404 and ":attend" in answer.url):
        page.get_by_role("button", name="Next word").click()
    expect(page.locator(".spoken .said-word")).to_have_count(2)
    page.console_errors.clear()  # the browser logs a response of 404


def test_another_text_takes_the_translation_away(visit):
    """What was said belongs to its text: another one begins anew, and an error never stands over the old one."""
    page = visit(view="translate", model="cross-attention", text="", memory="twenty one")
    page.get_by_role("button", name="To the end").click()
    expect(page.locator(".spoken .mark")).to_contain_text("[END]")
    page.get_by_label("Text to translate").fill("four million twenty zebra")
    expect(page.get_by_role("button", name="Next word")).to_be_enabled()
    expect(page.locator(".spoken")).to_contain_text("Nothing said yet")
    page.get_by_role("button", name="Next word").click()
    expect(page.get_by_role("alert")).to_contain_text("million")
    expect(page.locator(".spoken")).not_to_contain_text("ein")
    page.get_by_label("Text to translate").fill("four thousand")
    page.get_by_role("button", name="To the end").click()
    expect(page.locator(".spoken .said-word")).to_contain_text(["vier", "tausend"])
    page.console_errors.clear()  # the browser logs a response of 400


def test_it_picks_a_model_that_translates(visit):
    """From another model, the view goes to one that translates; back brings the sentence and its model."""
    page = visit(view="meet", model="multi-head", text="I gave my cat Tater a toy")
    page.locator(".arc").first.wait_for(state="attached")
    page.get_by_role("group", name="Views").get_by_text("Translate").click()
    expect(page.get_by_label("Model: cross-attention")).to_be_visible()
    page.get_by_role("button", name="To the end").click()
    expect(page.locator(".spoken .mark")).to_contain_text("[END]")
    said = page.locator(".spoken").inner_text()
    again = page.context.new_page()
    again.goto(page.url)
    expect(again.locator(".spoken .mark")).to_contain_text("[END]")
    assert again.locator(".spoken").inner_text() == said
    again.close()
    page.go_back()
    page.go_back()
    expect(page.locator("#a-text")).to_have_value("I gave my cat Tater a toy")


def test_a_source_word_is_struck(visit, ask):
    """With a word of the source hidden, the translation is that of the API with the same mask."""
    page = visit(view="translate", model="cross-attention", text="", memory="twenty one", said=1)
    expect(page.locator(".spoken .said-word")).to_contain_text("ein")
    page.get_by_role("button", name="Hide one").click()
    mask = {"allowed": [[True, False, True]]}
    said = ask("cross-attention", text="", memory_text="twenty one", mask=mask, outputs=["predictions"])["predictions"][
        0
    ]
    expect(page.locator(".spoken .said-word, .spoken .mark")).to_contain_text(said["label"])
