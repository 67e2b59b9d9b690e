"""Pages written by the Python client, opened in a browser: files and notebooks."""

import numpy as np
import pytest
from attention_client import AttendResult, AttentionClient, OutputSpec
from attention_client.display.viewer import page as page_of
from playwright.sync_api import FrameLocator, Page, expect

from tests.web.conftest import watched
from tests.web.reading import SENTENCE, close, number


@pytest.fixture(scope="module")
def client(site):
    with AttentionClient(site.grpc) as connected:
        yield connected


def row_in_numbers(page: Page | FrameLocator) -> list[list[float]]:
    rows = page.locator(".row-table tbody tr").all()
    return [[number(cell) for cell in row.locator("td").all_inner_texts()] for row in rows]


def test_a_file_shows_every_layer(browser, client, tmp_path):
    """A written page shows the result's numbers, layer by layer and head by head, and sends no request."""
    result = client.attend("encoder", text=SENTENCE, outputs=[OutputSpec("weights", layers=["*"])])
    file = tmp_path / "weights.html"
    file.write_text(page_of(result), "utf-8")
    with watched(browser, "file:") as page:
        page.goto(file.as_uri())
        page.locator("button.chip").nth(1).click()
        for layer in ("0", "1"):
            page.get_by_role("combobox").select_option(layer)
            true = result[f"weights@{layer}"][:, 1]
            assert close(row_in_numbers(page), [*true, true.mean(0)])
        expect(page.locator(".thumbnail canvas")).to_have_count(24)
        page.get_by_role("button", name="layer 0, head 7").click()
        assert close(row_in_numbers(page)[0], result["weights@0"][7, 1])


def test_a_notebook_shows_a_result(browser, client, tmp_path):
    """A displayed result has its own frame, starts at the row of the predictions, and has the result's numbers."""
    result = client.attend("multi-head", text=SENTENCE, outputs=["weights", "predictions"])
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{result._repr_html_()}", "utf-8")
    with watched(browser, "file:") as page:
        page.goto(notebook.as_uri())
        frame = page.frame_locator("iframe")
        expect(frame.locator(".readout")).to_contain_text("from gave")
        true = result.weights[:, 1]
        assert close(row_in_numbers(frame), [*true, true.mean(0)])
        expect(frame.locator(".said")).to_contain_text("recipient Tater")


def test_a_result_without_weights_has_no_picture(client):
    """A notebook displays `repr` for a result without weights."""
    assert client.attend("multi-head", text=SENTENCE, outputs=["output"])._repr_html_() is None


def test_strange_tokens_are_text(browser, tmp_path):
    """A token that would end the script element is shown, and its code does not run."""
    tokens = ("</script><script>document.title='run'</script>", "<!--", "b")
    weights = np.full((1, 3, 3), 1 / 3, np.float32)
    result = AttendResult("any", 1, {"weights": weights}, tokens=tokens, key_tokens=tokens)
    file = tmp_path / "weights.html"
    file.write_text(page_of(result, "<b>title</b>"), "utf-8")
    with watched(browser, "file:") as page:
        page.goto(file.as_uri())
        expect(page.locator("h1")).to_have_text("<b>title</b>")
        expect(page.locator("button.chip").nth(1)).to_have_text("<!--")
        assert page.title() == "<b>title</b>"


def test_a_long_result_is_a_small_file(browser, tmp_path):
    """For 512 positions the page contains and draws the largest weights of each row."""
    weights = np.random.default_rng(0).dirichlet(np.full(512, 0.05), (2, 512)).astype(np.float32)
    file = tmp_path / "weights.html"
    file.write_text(page_of(AttendResult("any", 1, {"weights": weights})), "utf-8")
    assert file.stat().st_size < weights.nbytes / 4
    with watched(browser, "file:") as page:
        page.goto(file.as_uri())
        page.locator("button.chip").nth(7).click()
        most = int(weights[0, 7].argmax())
        expect(page.locator(".row-table tbody td").first).to_have_text(f"{most} {weights[0, 7, most]:.4f}")
