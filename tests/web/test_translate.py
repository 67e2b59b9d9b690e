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
    words = page.locator(".spoken .word")
    for count, word in enumerate(true.words, 1):
        page.get_by_role("button", name="Next word").click()
        expect(words).to_have_count(count)
        assert words.last.inner_text().split()[0] == word
        expect(page.locator("button.chip")).to_have_count(count)
    page.get_by_role("button", name="To the end").click()
    expect(page.locator(".spoken .mark")).to_contain_text("[END]")
    expect(page.get_by_role("button", name="Next word")).to_be_disabled()
    assert len(memories) == 1
    assert page.locator("span.chip").all_inner_texts() == list(true.memory_tokens)
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
    page.get_by_role("button", name="Next word").click()
    expect(page.locator(".spoken .word")).to_have_count(1)
    identity = page.locator("code").inner_text()
    assert page.request.delete(f"{site.url}/v1/models/cross-attention/memories/{identity}").ok
    with page.expect_response(lambda answer: answer.status == 404 and ":attend" in answer.url):
        page.get_by_role("button", name="Next word").click()
    expect(page.locator(".spoken .word")).to_have_count(2)
    page.console_errors.clear()  # the browser logs a response of 404


def test_only_models_that_say_words_translate(visit):
    """The view is available for models with a predictor of the next word only."""
    page = visit(view="translate", model="multi-head", text="I gave my cat Tater a toy")
    expect(page.locator("#stage-title")).to_be_visible()
    expect(page.get_by_role("group", name="Views")).not_to_contain_text("Translate")
