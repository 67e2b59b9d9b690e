"""Step by step: each stage of one query position, with the numbers of the API."""

import re
from urllib.parse import quote

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.web.conftest import watched
from tests.web.reading import SENTENCE, close, number

STAGES = [
    "The sequence",
    "Query, keys, values",
    "Scores",
    "Mask",
    "Softmax",
    "Weights",
    "Weighted sum",
    "Heads combined",
    "Output",
]
VECTORS = [[1, 0, 0.5], [0, 1, -0.5], [1, 1, 0], [-0.25, 0.5, 2]]
# Every kind of model and input: the fields of the link, and those of the API.
CASES = {
    "dot-product": ({"query-vectors": str(VECTORS)}, {"query": VECTORS}, None),
    "self-attention": ({"text": "cat=3 dog=7 dog=?"}, {"text": "cat=3 dog=7 dog=?"}, None),
    "multi-head": ({"text": SENTENCE}, {"text": SENTENCE}, None),
    "cross-attention": (
        {"text": "ein und", "memory": "twenty one"},
        {"text": "ein und", "memory_text": "twenty one"},
        None,
    ),
    "encoder": ({"text": SENTENCE, "layer": "0"}, {"text": SENTENCE}, "0"),
}


def strip(page: Page, name: str) -> list[float]:
    """Read a strip of numbers from its tooltips."""
    tips = page.locator(f'.strip-of-numbers[aria-label^="{name},"] rect').evaluate_all(
        "all => all.map((each) => each.dataset.tip)"
    )
    return [number(tip.split(" = ")[1]) for tip in tips]


@pytest.mark.parametrize("model", CASES)
def test_every_stage_has_the_numbers_of_the_api(model, visit, ask):
    """For every block, text and vectors, each stage by the arrow key has the API's numbers."""
    link, asked, layer = CASES[model]
    query, head = 1, 0
    specs = [
        {"name": name, "layers": [layer] if layer else []} for name in ("q", "k", "v", "scores", "weights", "heads")
    ]
    true = ask(model, **asked, outputs=[*specs, {"name": "output", "layers": [layer] if layer else []}])["outputs"]
    keys = true["weights"].shape[2]
    page = visit(view="steps", track="stages", model=model, query=query, head=head, **link)
    for name in STAGES:
        expect(page.locator("#stage-title")).to_have_text(name)
        expect(page.locator(".pipeline [aria-current=step]")).to_contain_text(name)
        expect(page.locator(".formula math")).to_be_visible()
        assert page.locator(".shapes").inner_text().strip()
        match name:
            case "Query, keys, values":
                assert close(strip(page, "q"), true["q"][head, query])
                assert close(strip(page, "k1"), true["k"][head, 1])
                assert close(strip(page, "v1"), true["v"][head, 1])
            case "Scores":
                shown = page.locator("table.keys .number").all_inner_texts()
                assert close([number(each) for each in shown], true["scores"][head, query])
            case "Softmax":
                shown = [number(each) for each in page.locator("tbody td:last-child .number").all_inner_texts()]
                scores = true["scores"][head, query].astype(float)
                assert close(shown, np.exp(scores - scores.max()))
            case "Weights":
                shown = page.locator("b.weight").evaluate_all("all => all.map((each) => each.dataset.tip)")
                assert len(shown) == keys
                assert close([number(each) for each in shown], true["weights"][head, query])
            case "Weighted sum":
                assert close(strip(page, "head"), true["heads"][head, query])
            case "Heads combined":
                for each in range(len(true["heads"])):
                    assert close(strip(page, f"head {each}"), true["heads"][each, query])
            case "Output":
                assert close(strip(page, "y"), true["output"][query])
        page.keyboard.press("ArrowRight")


def test_predictions_stand_at_the_output(visit, ask):
    """The head's predictions are shown at the output of the row that it reads."""
    said = ask("multi-head", text=SENTENCE, outputs=["predictions"])["predictions"]
    page = visit(view="steps", track="stages", model="multi-head", text=SENTENCE, step=8)
    rows = page.locator(".stage-figure table.keys tbody tr")
    expect(rows).to_have_count(len(said))
    for row, each in zip(rows.all(), said, strict=True):
        assert row.locator("th, td").all_inner_texts()[:2] == [each["name"], each["label"]]


def test_another_token_and_another_head(visit, ask):
    """A click on a token or a head shows its numbers."""
    true = ask("multi-head", text=SENTENCE, outputs=["weights"])["outputs"]["weights"]
    page = visit(view="steps", track="stages", model="multi-head", text=SENTENCE, step=5)
    page.get_by_role("group", name="The query position").get_by_text("Tater").click()
    page.get_by_role("group", name="The head").get_by_text("2").click()
    expect(page.locator(".lead .chosen")).to_have_text("Tater")
    weights = page.locator("b.weight")
    expect(weights.nth(6)).to_have_text(f"{true[2, 4, 6]:.4f}")
    shown = weights.evaluate_all("all => all.map((each) => each.dataset.tip)")
    assert close([number(each) for each in shown], true[2, 4])


def test_the_token_by_keyboard(visit):
    """The tokens are one tab stop: arrow keys move among tokens, Enter selects, and the stage stays."""
    page = visit(view="steps", track="stages", model="multi-head", text=SENTENCE, step=2, query=1)
    page.locator(".chip.from").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".lead .chosen")).to_have_text("cat")
    expect(page.locator("#stage-title")).to_have_text("Scores")
    assert page.locator(".chip[tabindex='0']").count() == 1


def test_a_mask_hides_the_future(visit, ask):
    """A causal mask set beside the input makes scores of later keys -inf, and weights zero."""
    true = ask("multi-head", text=SENTENCE, mask={"causal": "top_left"}, outputs=["weights"])["outputs"]["weights"]
    page = visit(view="steps", track="stages", model="multi-head", text=SENTENCE, query=2, step=3)
    page.get_by_role("button", name="Input").click()
    page.get_by_label("Causal").select_option("top_left")
    page.keyboard.press("Escape")
    expect(page.locator(".lead")).to_contain_text("4 of 7 keys are hidden")
    masked = page.locator("table.keys tbody td:last-child")
    expect(masked.last).to_have_text("\N{MINUS SIGN}\N{INFINITY}")
    assert masked.all_inner_texts()[3:] == ["\N{MINUS SIGN}\N{INFINITY}"] * 4
    page.locator("#main").focus()
    page.keyboard.press("6")
    page.locator("b.weight").first.wait_for()
    shown = page.locator("b.weight").evaluate_all("all => all.map((each) => each.dataset.tip)")
    assert close([number(each) for each in shown], true[0, 2])
    assert shown[3:] == ["0"] * 4


def test_a_key_of_zeros_counts_in_the_sum(browser, site, ask):
    """In a model with a zero key the sum of the softmax has its exp(0), and weights are less than 1 together."""
    scores = ask("multi-head", text=SENTENCE, outputs=["scores"])["outputs"]["scores"][0, 1].astype(float)
    most = max(scores.max(), 0)

    def with_zero_key(route):
        answer = route.fetch()
        models = answer.json()
        for model in models["models"]:
            model["manifest"]["layers"][0]["zero_key"] = True
        route.fulfill(response=answer, json=models)

    with watched(browser, site.url) as page:
        page.route("**/v1/models", with_zero_key)
        page.goto(f"{site.url}/#view=steps&track=stages&model=multi-head&text={quote(SENTENCE)}&query=1&head=0&step=4")
        total = page.locator("table.keys").get_by_text(re.compile("^sum ")).first
        assert close([number(total.inner_text().split()[1])], [np.exp(scores - most).sum() + np.exp(-most)])
        page.keyboard.press("ArrowRight")
        expect(page.locator(".lead")).to_contain_text("less than 1, since each query also attends to a key of zeros")


def test_numbers_beside_the_pointer(visit, ask):
    """Each cell of a vector shows its exact number at the pointer."""
    true = ask("multi-head", text=SENTENCE, outputs=["q"])["outputs"]["q"]
    page = visit(view="steps", track="stages", model="multi-head", text=SENTENCE, query=1, step=1)
    page.locator('.strip-of-numbers[aria-label^="q,"] rect').nth(3).hover()
    name, value = page.locator(".tip").inner_text().split(" = ")
    assert name == "q[3]"
    assert close(number(value), true[0, 1, 3])


def test_a_long_sequence_shows_the_keys_that_weigh_most(visit, ask):
    """Of many keys, the twelve with the largest weights are shown, and k and v are requested for these alone."""
    text = " ".join([SENTENCE] * 20)
    true = ask("encoder", text=text, outputs=[{"name": "weights", "rows": [5]}])["outputs"]["weights"]
    page = visit(view="steps", track="stages", model="encoder", text=text, query=5, step=5)
    expect(page.locator(".aside")).to_contain_text("12 of 140 keys")
    weights = page.locator("b.weight")
    keys = [int(each) for each in weights.evaluate_all("all => all.map((each) => each.dataset.key)")]
    assert keys == sorted(np.argsort(-true[0, 0], kind="stable")[:12])
    shown = [number(each) for each in weights.evaluate_all("all => all.map((each) => each.dataset.tip)")]
    assert close(shown, true[0, 0, keys])


def cells(page: Page, row: str) -> list[float]:
    """Read the numbers of a row of a track's table, all digits."""
    shown = page.locator(f'.flow tr[data-row="{row}"] .number')
    return [float(each) for each in shown.evaluate_all("all => all.map((each) => each.dataset.value)")]


def numbers(page: Page, row: str, at: int = 0) -> list[float]:
    """Read a vector in a row of a track's table."""
    vector = page.locator(f'.flow tr[data-row="{row}"] .strip-of-numbers').nth(at)
    tips = vector.locator("rect").evaluate_all("all => all.map((each) => each.dataset.tip)")
    return [number(tip.split(" = ")[1]) for tip in tips]


def test_track_a_has_the_numbers_of_the_api(visit, ask):
    """From plain dot products to q, k and v in five screens, with the API's numbers, by Next and by the arrow key."""
    outputs = ["embeddings", "q", "k", "v", "scores", "weights", "heads"]
    true = ask("multi-head", text=SENTENCE, outputs=outputs)["outputs"]
    v = true["embeddings"].astype(float)
    page = visit(view="steps", model="multi-head", text=SENTENCE, query=1, head=1)
    next_button = page.get_by_role("button", name="Next")
    place = next_button.bounding_box()
    expect(page.locator("#stage-title")).to_have_text("Nothing is learned yet")
    scores = v @ v[1]
    weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert close(numbers(page, "v", 3), v[3])
    assert close(cells(page, "rawScore"), scores)
    assert close(cells(page, "rawWeight"), weights)
    assert close(numbers(page, "rawSum"), weights @ v)
    next_button.click()
    assert close(numbers(page, "q"), true["q"][1, 1])
    page.keyboard.press("ArrowRight")
    expect(page.locator(".count")).to_have_text("3 / 5")
    assert close(numbers(page, "k", 4), true["k"][1, 4])
    assert close(cells(page, "score"), true["scores"][1, 1])
    assert close(cells(page, "weight"), true["weights"][1, 1])
    page.keyboard.press("ArrowRight")
    expect(page.locator(".count")).to_have_text("4 / 5")
    assert close(numbers(page, "value", 4), true["v"][1, 4])
    assert close(numbers(page, "part", 4), true["v"][1, 4] * true["weights"][1, 1, 4])
    assert close(numbers(page, "sum"), true["heads"][1, 1])
    next_button.click()
    expect(page.locator("#stage-title")).to_have_text("All together")
    expect(next_button).to_be_disabled()
    assert next_button.bounding_box() == place, "Next stays where it is"
    expect(page.locator('.flow tr[data-row="weight"] .number').nth(4)).to_have_text("0.97")
    page.get_by_label("all digits").check()
    expect(page.locator('.flow tr[data-row="weight"] .number').nth(4)).to_have_text(f"{true['weights'][1, 1, 4]:.6g}")


def test_track_b_has_the_numbers_of_the_api(visit, ask):
    """One head alone answers one question; all heads' weights, and their parts of the output, are the API's."""
    alone = ask("multi-head", text=SENTENCE, ablate=[{"heads": [0, 2]}], outputs=["predictions"])["predictions"]
    true = ask("multi-head", text=SENTENCE, outputs=["weights", "contributions", "output"])["outputs"]
    page = visit(view="steps", track="heads", model="multi-head", text=SENTENCE, query=1, head=1)
    said = page.locator('.flow tr[data-row="alone"] b')
    expect(said).to_have_text([each["label"] for each in alone])
    expect(page.locator('.flow tr[data-row="alone"] .other')).to_have_count(2)
    page.keyboard.press("2")
    expect(page.locator(".count")).to_have_text("2 / 3")
    assert close(cells(page, "allHeads"), true["weights"][:, 1].ravel())
    page.keyboard.press("3")
    expect(page.locator(".count")).to_have_text("3 / 3")
    for head in range(3):
        assert close(numbers(page, "contributions", head), true["contributions"][head, 1])
    assert close(numbers(page, "output"), true["output"][1])


def test_track_c_reads_another_sequence(visit, ask):
    """From a model of one sequence to one of two: query of the target, keys and values of the source."""
    page = visit(view="steps", track="two", model="multi-head", text=SENTENCE)
    page.get_by_role("button", name=re.compile("^With cross-attention")).click()
    expect(page.locator(".flow thead th")).to_have_text(["twenty", "one", "[END]"])
    outputs = ["q", "k", "weights", "heads"]
    true = ask("cross-attention", text="ein und", memory_text="twenty one", outputs=outputs)["outputs"]
    assert close(numbers(page, "q"), true["q"][0, -1])
    assert close(numbers(page, "k", 2), true["k"][0, 2])
    page.keyboard.press("3")
    expect(page.locator(".count")).to_have_text("3 / 3")
    assert close(cells(page, "weight"), true["weights"][0, -1])
    assert close(numbers(page, "sum"), true["heads"][0, -1])
