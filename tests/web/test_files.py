"""Input and export of the page: vectors, links, figures, and files of other tools."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from attention_client import AttentionClient, OutputSpec
from attention_client.cli.commands import app
from attention_client.display import plot
from matplotlib.image import imread
from playwright.sync_api import Page, expect
from typer.testing import CliRunner

from tests.web.reading import NOTE, OTHER, SENTENCE, close, number, violations

VECTORS = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
SVG = "{http://www.w3.org/2000/svg}"


def export(page: Page, kind: str, folder: Path) -> Path:
    """Export in one format; return the file."""
    page.get_by_label("Export").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name=kind, exact=True).click()
    expect(page.get_by_role("button", name=kind, exact=True)).to_be_hidden()  # a choice closes the menu
    file = folder / saved.value.suggested_filename
    saved.value.save_as(file)
    return file


def first_row(page: Page) -> list[float]:
    return [number(each) for each in page.locator(".row-table tbody tr").first.locator("td").all_inner_texts()]


def write(folder: Path, kind: str) -> Path:
    file = folder / f"vectors.{kind}"
    match kind:
        case "npy":
            np.save(file, VECTORS)
        case "csv":
            np.savetxt(file, VECTORS, delimiter=",", header="a,b", comments="")
        case "json":
            file.write_text(json.dumps(VECTORS.tolist()))
    return file


@pytest.mark.parametrize("kind", ["npy", "csv", "json"])
def test_vectors_from_a_file(kind, visit, ask, tmp_path):
    """Vectors selected from .npy, CSV or JSON are the query."""
    page = visit(view="atlas", tab="layer", model="multi-head", **{"query-vectors": json.dumps([[0] * 48])})
    page.get_by_label("Query vectors from a file").set_input_files(write(tmp_path, kind))
    expect(page.locator("button.chip")).to_have_count(5)
    page.locator("button.chip").nth(2).click()
    true = ask("multi-head", query=VECTORS.tolist(), outputs=["weights"])["outputs"]["weights"]
    assert close(first_row(page), true[0, 2])


@pytest.mark.parametrize("kind", ["npy", "csv", "json"])
def test_vectors_dropped_on_the_page(kind, visit, ask, tmp_path):
    """A file dropped anywhere on the page is the query."""
    page = visit(view="atlas", tab="layer", model="dot-product")
    file = write(tmp_path, kind)
    page.evaluate(
        """([name, content]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(content)], name));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [file.name, list(file.read_bytes())],
    )
    expect(page.locator("button.chip")).to_have_count(5)
    page.locator("button.chip").nth(4).click()
    true = ask("dot-product", query=VECTORS.tolist(), outputs=["weights"])["outputs"]["weights"]
    assert close(first_row(page), true[0, 4])


def test_vectors_typed_as_json(visit, ask):
    """Vectors typed into the field are the query."""
    page = visit(view="atlas", tab="layer", model="dot-product", **{"query-vectors": "[[1,0],[0,1]]"})
    page.get_by_role("button", name="Change the vectors").click()
    field = page.get_by_role("textbox", name="Query vectors")
    field.fill("[[1, 2], [3, -1], [0, 0.5]]")
    field.blur()
    page.keyboard.press("Escape")
    expect(page.locator("button.chip")).to_have_count(3)
    page.locator("button.chip").nth(1).click()
    true = ask("dot-product", query=[[1, 2], [3, -1], [0, 0.5]], outputs=["weights"])["outputs"]["weights"]
    assert close(first_row(page), true[0, 1])


def test_a_file_that_holds_no_vectors_is_named(visit, tmp_path):
    """A file without vectors is an error with the file's name and the problem."""
    page = visit(view="atlas", tab="layer", model="dot-product")
    page.get_by_role("button", name="Change the vectors").click()
    (tmp_path / "ragged.json").write_text("[[1, 2], [3]]")
    page.get_by_label("Query vectors from a file").set_input_files(tmp_path / "ragged.json")
    expect(page.get_by_role("alert")).to_have_text("ragged.json vector 1 has 1 numbers, the first 2")


def test_a_link_omits_many_vectors_and_says_so(visit, tmp_path):
    """A link contains few vectors; it omits many, and the page says so."""
    page = visit(view="atlas", tab="layer", model="dot-product", **{"query-vectors": "[[1,0],[0,1]]"})
    assert "query-vectors" in page.url
    expect(page.locator(".notice")).to_have_count(0)
    np.save(tmp_path / "many.npy", np.zeros((64, 48), np.float32))
    page.get_by_label("Query vectors from a file").set_input_files(tmp_path / "many.npy")
    expect(page.locator(".notice")).to_contain_text("leaves out query (64 \N{MULTIPLICATION SIGN} 48 numbers)")
    expect(page).not_to_have_url(re.compile("query-vectors"))


def numbers_in(root: ET.Element) -> Counter[str]:
    return Counter(each.text for each in root.iter(f"{SVG}text") if re.fullmatch(r"-?\d\.\d\d", each.text or ""))


def drawn(*weights: np.ndarray) -> Counter[str]:
    """Return the numbers written into a matrix's cells: two digits, and an empty string for zero."""
    return Counter(f"{weight:.2f}" for each in weights for weight in each.ravel() if abs(weight) >= 0.005)


def test_svg_equals_the_view(visit, ask, tmp_path):
    """The SVG has a cell for each weight of each panel, the API's numbers, every token, and no external reference."""
    true = ask("multi-head", text=SENTENCE, outputs=["weights"])["outputs"]["weights"]
    page = visit(view="atlas", tab="layer", model="multi-head", text=SENTENCE, lock=1)
    page.locator(".row-table").wait_for()
    root = ET.fromstring(export(page, "SVG", tmp_path).read_text())
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {*SENTENCE.split(), "head 0", "head 2", "mean", "weight 0", "1"} <= set(texts)
    assert "multi-head, version 1, layer 0; rows look at columns" in texts
    assert numbers_in(root) == drawn(true, true.mean(0))
    assert len(list(root.iter(f"{SVG}rect"))) >= 4 * 7 * 7
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", ET.tostring(root).decode()).replace(
        "http://www.w3.org/2000/svg", ""
    )
    page.get_by_role("button", name="Lines").click()
    root = ET.fromstring(export(page, "SVG", tmp_path).read_text())
    assert list(root.iter(f"{SVG}path"))


def test_svg_of_every_view(visit, ask, tmp_path):
    """Every view has a figure: a step's weights, a comparison, the alignment so far."""
    (a, b), two = (
        (ask("multi-head", text=text, outputs=["weights"])["outputs"]["weights"] for text in (SENTENCE, OTHER)),
        {"b.model": "multi-head", "b.text": OTHER},
    )
    page = visit(view="steps", track="stages", model="multi-head", text=SENTENCE, step=2, head=1)
    page.locator(".stage-card").wait_for()
    assert numbers_in(ET.fromstring(export(page, "SVG", tmp_path).read_text())) == drawn(a[1])
    page = visit(view="compare", model="multi-head", text=SENTENCE, **two)
    expect(page.locator(".panels figure")).to_have_count(3)
    root = ET.fromstring(export(page, "SVG", tmp_path).read_text())
    assert {"B \N{MINUS SIGN} A", *SENTENCE.split(), *OTHER.split()} <= {each.text for each in root.iter(f"{SVG}text")}
    assert numbers_in(root) == drawn(a.mean(0), b.mean(0), b.mean(0) - a.mean(0))
    exports = page.locator("nav .menu-list button").all_text_contents()
    assert exports == ["SVG", "PNG", "Copy link", "Add to story"]
    page = visit(view="translate", model="cross-attention", text="", memory="twenty one")
    page.get_by_role("button", name="Next word").click()
    expect(page.locator(".spoken .said-word")).to_have_count(1)
    texts = [each.text for each in ET.fromstring(export(page, "SVG", tmp_path).read_text()).iter(f"{SVG}text")]
    assert {"ein", "twenty", "one"} <= set(texts)


def test_an_atlas_as_a_file(visit, ask, site, tmp_path):
    """The heads of all layers stand in one SVG, of the page and of `plot`, with names; cells are the API's."""
    outputs = ask("encoder", text=SENTENCE, outputs=[{"name": "weights", "layers": ["*"]}])["outputs"]
    true = [outputs[f"weights@{layer}"] for layer in (0, 1)]
    page = visit(view="atlas", model="encoder", text=SENTENCE)
    page.locator(".thumbnail").first.wait_for()
    root = ET.fromstring(export(page, "SVG of all heads", tmp_path).read_text())
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {SENTENCE, "0", "11", "weight 0", "in each head rows look at columns"} <= set(texts)
    assert "encoder, version 1; a row a layer, a column a head" in texts
    cells = [
        each.get("fill")
        for each in root.iter(f"{SVG}rect")
        if float(each.get("width")) == pytest.approx(72 / 7, abs=0.01)
    ]
    assert len(cells) == 24 * 49
    weights = np.concatenate(true).ravel()
    light = [int(cell[4:].split(",")[0]) for cell in cells]  # the ramp's red falls as weights rise
    assert np.all(np.diff(np.array(light)[np.argsort(weights)]) <= 0)
    assert {cells[at] for at in np.flatnonzero(weights < 1e-3)} == {"rgb(255, 255, 255)"}
    with AttentionClient(site.grpc) as client:
        figure = plot.atlas(client.attend("encoder", text=SENTENCE, outputs=[OutputSpec("weights", layers=["*"])]))
    panels = [each for each in figure.axes if each.images]
    assert np.array_equal([each.images[0].get_array() for each in panels], np.concatenate(true))
    files = ["--svg", str(tmp_path / "a.svg"), "--html", str(tmp_path / "a.html")]
    run = CliRunner().invoke(
        app, ["plot", SENTENCE, "--model", "encoder", "--layer", "*", "--target", site.grpc, *files]
    )
    assert (run.exit_code, run.output) == (0, "")
    assert "<svg" in (tmp_path / "a.svg").read_text()
    assert '"name": "1"' in (tmp_path / "a.html").read_text()


def blocks(pixels: np.ndarray, side: int = 16) -> np.ndarray:
    """Average an image over squares."""
    rows, columns = (size // side for size in pixels.shape[:2])
    return pixels[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).mean((1, 3))


def test_png_is_the_svg(visit, browser, tmp_path):
    """The PNG is the SVG's image at twice the resolution."""
    page = visit(view="atlas", tab="layer", model="multi-head", text=SENTENCE)
    page.locator(".readout").wait_for()
    drawing = export(page, "SVG", tmp_path)
    picture = export(page, "PNG", tmp_path)
    root = ET.fromstring(drawing.read_text())
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    alone = browser.new_page(device_scale_factor=2, viewport={"width": width, "height": height})
    alone.goto(drawing.as_uri())
    alone.screenshot(path=tmp_path / "drawn.png")
    alone.close()
    shown, expected = (imread(file)[..., :3] for file in (picture, tmp_path / "drawn.png"))
    assert shown.shape == expected.shape == (2 * height, 2 * width, 3)
    # Canvas and SVG place letters half a pixel apart, so blocks may differ; cells, which are larger, may not.
    assert np.abs(blocks(shown) - blocks(expected)).max() < 0.3


def test_the_link_is_copied(visit):
    """The menu copies the address of the current view."""
    page = visit(
        {"permissions": ["clipboard-read", "clipboard-write"]},
        view="atlas",
        tab="layer",
        model="multi-head",
        text=SENTENCE,
    )
    page.locator(".chip").nth(1).click()
    page.get_by_label("Export").click()
    page.get_by_role("button", name="Copy link").click()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert "lock=1" in page.url


def test_json_comes_out_and_goes_in(visit, ask, tmp_path):
    """The exported JSON has every layer's weights as in the API, and the page opens it."""
    page = visit(view="atlas", tab="layer", model="encoder", text=SENTENCE)
    page.locator(".readout").wait_for()
    file = export(page, "JSON", tmp_path)
    content = json.loads(file.read_text())
    true = ask("encoder", text=SENTENCE, outputs=[{"name": "weights", "layers": ["*"]}])["outputs"]
    for layer in content["layers"]:
        assert np.array_equal(np.array(layer["weights"], np.float32), true[f"weights@{layer['name']}"])
    assert content["queries"] == content["keys"] == SENTENCE.split()
    page.get_by_label("Open a picture").set_input_files(file)
    expect(page.locator(".notice")).to_contain_text("encoder.json")
    page.get_by_label("layer").select_option("0")
    page.locator("button.chip").nth(1).click()
    assert close(first_row(page), true["weights@0"][0, 1])


def test_an_answer_of_the_api_is_opened(visit, site, tmp_path):
    """The page opens a response of :attend."""
    page = visit(view="steps", model="dot-product")
    body = {"text": SENTENCE, "outputs": ["weights", "predictions"]}
    answer = page.request.post(f"{site.url}/v1/models/multi-head:attend", data=body)
    (tmp_path / "answer.json").write_bytes(answer.body())
    page.get_by_label("Open a picture").set_input_files(tmp_path / "answer.json")
    page.locator("button.chip").nth(1).click()
    weights = answer.json()["results"][0]["outputs"]["weights"]["values"]
    assert close(first_row(page), weights[0][1])


def test_bertviz_in_and_out(visit, ask, tmp_path):
    """The page opens and exports BertViz's head_view data: [layers][heads][queries][keys]."""
    page = visit(view="atlas", tab="layer", model="encoder", text=SENTENCE)
    page.locator(".readout").wait_for()
    file = export(page, "BertViz", tmp_path)
    content = json.loads(file.read_text())
    true = ask("encoder", text=SENTENCE, outputs=[{"name": "weights", "layers": ["*"]}])["outputs"]
    (attention,) = content["attention"]
    assert np.array_equal(np.array(attention["attn"], np.float32), [true["weights@0"], true["weights@1"]])
    assert attention["left_text"] == attention["right_text"] == SENTENCE.split()
    assert content["include_layers"] == [0, 1]
    page.get_by_label("Open a picture").set_input_files(file)
    page.locator("button.chip").nth(3).click()
    assert close(first_row(page), true["weights@1"][0, 3])


def test_an_unreadable_file_is_refused(visit, tmp_path):
    """A file of another kind is an error with the expected kinds."""
    page = visit(view="atlas", tab="layer", model="dot-product")
    (tmp_path / "other.json").write_text(
        '{"attention": [{"attn": [[[[1]]]], "left_text": ["a", "b"], "right_text": ["a"]}]}'
    )
    page.get_by_label("Open a picture").set_input_files(tmp_path / "other.json")
    expect(page.get_by_role("alert")).to_contain_text(
        "other.json: attention[0].attn[0]: expected numbers [heads][2][1]"
    )


def test_html_is_one_self_contained_file(visit, ask, browser, tmp_path):
    """The HTML shows the same numbers without a server, sends no request, and does not run code in tokens."""
    page = visit(
        view="atlas", tab="layer", model="encoder", text=f"{SENTENCE} </script><script>document.title='run'</script>"
    )
    page.locator(".readout").wait_for()
    file = export(page, "HTML", tmp_path)
    true = ask(
        "encoder",
        text=f"{SENTENCE} </script><script>document.title='run'</script>",
        outputs=[{"name": "weights", "layers": ["*"]}],
    )["outputs"]
    alone = page.context.new_page()
    asked: list[str] = []
    alone.on("request", lambda sent: asked.append(sent.url))
    alone.goto(file.as_uri())
    alone.locator("button.chip").nth(1).click()
    assert close(first_row(alone), true["weights@1"][0, 1])
    # Cells are as wide as the names of the tokens above them take, for twelve heads too.
    widths = [stage.bounding_box()["width"] for stage in alone.locator(".stage").all()]
    assert len(widths) == 13
    assert min(widths) >= 11 * len(true["weights@1"][0])
    assert violations(alone) == []
    expect(alone.locator(".note")).to_contain_text(NOTE)
    alone.get_by_role("combobox").select_option("0")
    assert close(first_row(alone), true["weights@0"][0, 1])
    assert alone.title() != "run"
    assert [each for each in asked if not each.startswith(("file:", "data:"))] == []
    alone.close()


def test_a_long_sequence_is_exported_by_its_largest(visit, tmp_path):
    """Above 64 tokens files have the largest weights of each row; BertViz, which needs complete weights, is refused."""
    text = " ".join([SENTENCE] * 12)
    page = visit(view="atlas", tab="layer", model="encoder", text=text)
    expect(page.locator("button.chip")).to_have_count(84)
    content = json.loads(export(page, "JSON", tmp_path).read_text())
    assert np.shape(content["layers"][0]["largest"]["values"]) == (12, 84, 16)
    root = ET.fromstring(export(page, "SVG", tmp_path).read_text())
    assert len(list(root.iter(f"{SVG}image"))) == 13
    page.get_by_label("Export").click()
    page.get_by_role("button", name="BertViz").click()
    expect(page.get_by_role("alert")).to_contain_text("BertViz takes whole weights")


def test_a_story(visit, tmp_path):
    """Views with captions become one HTML file that loads nothing, with a link to each live view."""
    page = visit(model="multi-head", text=SENTENCE)
    page.locator(".arc").first.wait_for(state="attached")
    page.get_by_label("Export").click()
    page.get_by_role("button", name="Add to story").click()
    story = page.get_by_role("dialog", name="Story")
    story.get_by_label("View 1").fill("Three heads <look>")
    story.get_by_role("button", name="Close").click()
    page.get_by_role("group", name="Views").get_by_text("Atlas").click()
    page.locator(".thumbnail").first.wait_for()
    page.get_by_label("Export").click()
    page.get_by_role("button", name="Add to story").click()
    assert violations(page) == []
    with page.expect_download() as saved:
        story.get_by_role("button", name="Save as one HTML file").click()
    file = tmp_path / "story.html"
    saved.value.save_as(file)
    told = page.context.new_page()
    told.goto(file.as_uri())
    captions = told.locator("figcaption").all_inner_texts()
    assert captions[0] == "Three heads <look>"
    assert "multi-head, version 1" in captions[1]
    assert told.locator("figure svg").count() == 2
    assert "view=atlas" in (told.locator("figure a").last.get_attribute("href") or "")
    assert not re.search(r"<script|src=", file.read_text("utf-8"))
