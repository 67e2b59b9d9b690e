"""The frame: the sentence, history, what stays while something is asked or wrong, and how often the page asks."""

import json

from playwright.sync_api import expect

from tests.web.conftest import watched
from tests.web.reading import OTHER, SENTENCE


def test_typing_a_sentence_asks_at_most_four_times(visit):
    """A sentence that is typed letter by letter is asked for at most four times; the last time it is whole."""
    page = visit(model="encoder", text="a")
    page.locator(".arc").first.wait_for(state="attached")
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(json.loads(sent.post_data)["text"]) if sent.post_data else None)
    field = page.get_by_label("Sentence")
    field.press("ControlOrMeta+a")
    field.press_sequentially(SENTENCE, delay=60)
    expect(page.locator(".words .ask")).to_have_count(7)
    assert len(asked) <= 4
    assert asked[-1] == SENTENCE


def test_the_last_picture_stays_dimmed(visit, site):
    """While an unknown word stands in the field, the last good picture stays, dimmed, and says what it is of."""
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    page.get_by_label("Sentence").fill("I gave my cat Bob a toy")
    expect(page.get_by_role("alert")).to_contain_text("Bob")
    expect(page.get_by_role("alert")).to_contain_text(f"of “{SENTENCE}”")
    expect(page.locator(".mirror u")).to_have_text("Bob")
    expect(page.locator(".view.stale .arc").first).to_be_attached()
    page.get_by_label("Sentence").fill("I gave my cat Tater a toy")
    expect(page.locator(".view.stale")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_count(0)
    page.console_errors.clear()  # the browser logs a response of 400


def test_near_words_of_an_unknown_one(visit):
    """Near words of an unknown one are a click away, and so are all that the model reads."""
    page = visit(model="multi-head", text="I gave my cat Tate a toy")
    page.locator(".near").get_by_role("button", name="tater", exact=True).click()
    expect(page.locator(".words")).to_contain_text("tater")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Sentence").fill("I gave my zzz a toy")
    page.get_by_text("The words that multi-head reads").click()
    expect(page.locator(".vocabulary p")).to_contain_text("tater")
    page.console_errors.clear()  # the browser logs responses of 400


def test_a_slow_answer_is_dimmed(visit):
    """While an answer is awaited, the picture before is dimmed and the view says that it is busy."""
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    held = []

    def hold(route):
        held.append(route)

    page.route("**/*:attend", hold)
    page.get_by_label("Sentence").fill(OTHER)
    page.get_by_label("Sentence").press("Enter")
    expect(page.locator(".view[aria-busy=true]")).to_be_visible()
    expect(page.locator(".view.stale .words")).to_contain_text("Tater")
    for route in held:
        route.continue_()
    expect(page.locator(".words")).to_contain_text("Leo")
    expect(page.locator(".view.stale")).to_have_count(0)


def test_a_file_ends_the_wait(visit):
    """A file that is opened while an answer is awaited takes its place: the view is no longer busy."""
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    page.route("**/*:attend", lambda _: None)  # never answered
    page.get_by_label("Sentence").fill(OTHER)
    page.get_by_label("Sentence").press("Enter")
    expect(page.locator(".view[aria-busy=true]")).to_be_visible()
    content = json.dumps({"attn": [[[[0.25, 0.75], [1, 0]]]], "left_text": ["x", "y"], "right_text": ["x", "y"]})
    page.evaluate(
        """(content) => {
            const data = new DataTransfer();
            data.items.add(new File([content], "heads.json"));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        content,
    )
    expect(page.get_by_text("heads.json:")).to_be_visible()
    expect(page.locator(".view[aria-busy=false]")).to_be_visible()


def test_a_server_that_comes_back_is_found_again(visit):
    """Without a server the picture stays and the page asks again, by itself and by its button."""
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
    page.get_by_label("Sentence").fill(OTHER)
    page.get_by_label("Sentence").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator(".view.stale .words")).to_contain_text("Tater")
    page.unroute("**/v1/**")
    expect(page.locator(".words")).to_contain_text("Leo")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.console_errors.clear()  # the browser logs requests that fail


def test_a_server_that_is_not_there_yet(browser, site):
    """A page that is opened before its server answers waits for it."""
    with watched(browser, site.url) as page:
        page.route(
            "**/v1/models", lambda route: route.fulfill(status=503, json={"error": {"message": "still loading"}})
        )
        page.goto(site.url)
        expect(page.get_by_role("alert")).to_contain_text("still loading")
        page.unroute("**/v1/models")
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator(".words")).to_contain_text("Tater")
        page.console_errors.clear()  # the browser logs responses of 503


def test_back_and_forward(visit):
    """Each choice is a step in the history; typing is one; back and forward go through them and ask nothing twice."""
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    page.get_by_role("button", name="toy", exact=True).click()
    page.get_by_role("group", name="Views").get_by_text("Atlas").click()
    page.get_by_label("Sentence").fill(OTHER)
    page.get_by_label("Sentence").press("Enter")
    expect(page.locator(".looks")).not_to_contain_text("from toy")
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.go_back()
    expect(page.get_by_label("Sentence")).to_have_value(SENTENCE)
    expect(page.locator(".looks")).to_contain_text("from toy")
    page.go_back()
    expect(page.get_by_role("heading", level=2)).to_contain_text("toy")
    page.go_back()
    expect(page.get_by_role("heading", level=2)).to_contain_text("gave")
    page.go_forward()
    expect(page.get_by_role("heading", level=2)).to_contain_text("toy")
    assert asked == []


def test_a_sentence_survives_another_model(visit):
    """What was typed stays when the model changes; an example that was not touched gives way to the next model's."""
    page = visit(model="encoder", text="my own cat")
    page.locator(".arc").first.wait_for(state="attached")
    page.get_by_label("Model: encoder").click()
    page.get_by_role("button", name="self-attention").click()
    expect(page.get_by_label("Sentence")).to_have_value("my own cat")
    page.get_by_label("Model: self-attention").click()
    page.locator(".example").filter(has_text="cat=3 dog=7").first.click()
    expect(page.get_by_label("Sentence")).to_have_value("cat=3 dog=7 cow=1 dog=?")
    expect(page.get_by_role("heading", level=2)).to_contain_text("?")
    page.console_errors.clear()  # the browser logs a response of 400


def test_token_ids_and_vectors_can_be_sent(visit, ask):
    """The drawer sends ids of tokens, or vectors, and begins with some that can be sent; other ids have none struck."""
    page = visit(model="multi-head", text=SENTENCE)
    page.get_by_role("button", name="Input").click()
    page.get_by_role("button", name="Token ids").click()
    field = page.get_by_label("Token ids, special tokens included")
    expect(field).not_to_have_value("")  # those of the text
    field.fill("1 2 3")
    field.blur()
    page.keyboard.press("Escape")
    tokens = ask("multi-head", token_ids=[1, 2, 3], outputs=["weights"])["tokens"]
    expect(page.locator(".words .ask")).to_have_text([token.strip() for token in tokens])
    assert "ids=1.2.3" in page.url
    page.locator(".words .hide").nth(1).click()
    expect(page.locator(".changes")).to_contain_text("hidden")
    page.get_by_role("button", name="Change the ids").click()
    field.fill("1 3 2")
    field.blur()
    page.keyboard.press("Escape")
    expect(page.locator(".words .ask")).to_have_text([tokens[0].strip(), tokens[2].strip(), tokens[1].strip()])
    expect(page.locator(".words .struck")).to_have_count(0)  # the place of a word in other ids is that of another
    page.get_by_role("button", name="Change the ids").click()
    page.get_by_role("button", name="Vectors").click()
    page.keyboard.press("Escape")
    expect(page.locator(".given")).to_contain_text("queries of 48 numbers")
    expect(page.locator(".words .ask")).to_have_text(["0", "1", "2", "3"])


def test_a_pair_of_texts(visit, ask):
    """A model that takes pairs reads a second text behind the first, with its own special tokens; a link holds both."""
    page = visit(model="wordpiece", text="hello world")
    page.locator(".arc").first.wait_for(state="attached")
    page.get_by_role("button", name="Input").click()
    page.get_by_label("a second text, as a pair").check()
    page.keyboard.press("Escape")
    page.get_by_label("Second text", exact=True).fill("the fox")
    page.get_by_label("Second text", exact=True).press("Enter")
    tokens = ask("wordpiece", text="hello world", text_pair="the fox", outputs=["weights"])["tokens"]
    assert tokens.count("[SEP]") == 2
    expect(page.locator(".words .ask")).to_have_text([token.strip() for token in tokens])
    page.locator(".words .hide").last.click()
    expect(page.locator(".words .struck")).to_have_count(1)
    page.reload()
    expect(page.locator(".words .ask")).to_have_text([token.strip() for token in tokens])
    expect(page.locator(".words .struck")).to_have_count(1)
    page.get_by_label("Second text", exact=True).fill("fox")
    page.get_by_label("Second text", exact=True).press("Enter")
    expect(page.locator(".words .struck")).to_have_count(0)  # of another pair
