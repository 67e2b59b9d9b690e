"""`attention-client`, run as a user runs it."""

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys

import attention_client
import numpy as np
import pytest
import requests
from attention_client import cli, display
from attention_proto import codec
from attention_proto.attention.v1.attention_pb2 import OutputSpec

SENTENCE = "I gave my cat Tater a toy"


@pytest.fixture
def run(target, monkeypatch, capsys):
    """Run the command in process: exit status, stdout, stderr; 80 columns wide, or as wide as into a pipe."""

    def run(*arguments, columns="80"):
        monkeypatch.setenv("ATTENTION_TARGET", target)
        monkeypatch.setenv("TERMINAL_WIDTH", "80")
        monkeypatch.setenv("COLUMNS", columns)
        if not columns:
            monkeypatch.delenv("COLUMNS")
        monkeypatch.setattr(sys, "argv", ["attention-client", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = exit_.code or 0
        return status, *capsys.readouterr()

    return run


def test_attend_draws_predictions_and_weights(run):
    """The picture has first the weights at the predictions' row, with the predictions; then the map of each head."""
    status, out, _ = run("attend", SENTENCE, "--model", "multi-head")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["from", "gave", *SENTENCE.split(), "predicted"] in lines
    assert ["head", "1", *"····", "1.0", *"··", "recipient", "Tater", "0.99"] in lines
    assert sum(line[:2] == ["head", "2"] for line in lines) == 2


def test_piped_text_is_plain(run):
    """Into a pipe goes text without colour codes, that fits the width."""
    _, out, _ = run("attend", SENTENCE, "--model", "multi-head")
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_pipe_has_room(run):
    """Nothing is cut or broken at 80 columns where no terminal reads; the help neither."""
    _, out, _ = run("attend", " ".join(f"word{i}" for i in range(16)), "--model", "multi-head", columns="")
    assert "looks most at" not in out
    assert max(map(len, out.splitlines())) > 80
    code = "from attention_client.cli import main; main()"
    asked = [sys.executable, "-c", code, "attend", "--help"]
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "TERMINAL_WIDTH"}}
    shown = subprocess.run(asked, capture_output=True, text=True, check=True, env=env).stdout
    assert "<none|top_left|bottom_right>" in shown


def test_faults_are_one_line(run, tmp_path, monkeypatch):
    """A file that cannot be written, and a fault of the command itself, are one line, not a page of trace."""
    missing = tmp_path / "none" / "weights.png"
    status, _, err = run("attend", SENTENCE, "--model", "multi-head", "--png", missing)
    assert err == ""
    assert status == f"attention-client: [Errno 2] No such file or directory: {str(missing)!r}"
    monkeypatch.setattr("attention_client.cli.commands.describe_models", lambda _: 1 / 0)
    assert run("models")[0].startswith("attention-client: unexpected ZeroDivisionError: division by zero (")
    monkeypatch.setenv("ATTENTION_TRACE", "1")
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run("models")


def test_long_sequences_show_their_largest(run):
    """Where a map does not fit, each row names the keys of its largest weights; further rows are counted."""
    _, out, _ = run("attend", " ".join(f"word{i}" for i in range(50)), "--model", "multi-head")
    assert "looks most at" in out
    assert "34 more rows; --json has them all" in out
    _, out, _ = run("attend", " ".join(f"word{i}" for i in range(16)), "--model", "multi-head")
    assert "looks most at" in out
    assert "more rows" not in out


def test_numbers_stand_out_from_their_shades(run, monkeypatch):
    """On a terminal with colours the bright shades have black numbers, and the dark ones light numbers."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, out, _ = run("attend", SENTENCE, "--model", "multi-head")
    shades: dict[bool, list[float]] = {True: [], False: []}
    for ink, *shade in re.findall(r"\x1b\[(30|37|90);48;2;(\d+);(\d+);(\d+)m", out):
        shades[ink == "30"].append(np.dot((0.2126, 0.7152, 0.0722), [int(each) for each in shade]))
    assert min(shades[True]) > max(shades[False])


def test_strange_tokens_stay_in_their_cell(run):
    """Control characters and markup in a text reach the terminal as text."""
    _, out, _ = run("attend", "a\x1b[31m [bold]b[/]", "--model", "multi-head")
    assert r"a\x1b[31m" in out
    assert "[bold]b[/]" in out


def test_memory_text(run):
    """A second text gives the columns."""
    _, out, _ = run("attend", "a b", "--memory-text", "x y z", "--model", "multi-head", "--outputs", "weights")
    assert out.split()[:5] == ["head", "0", "x", "y", "z"]


def test_json_is_the_rest_response(run):
    """--json prints one document in the form of the REST response."""
    status, out, _ = run("attend", SENTENCE, "--model", "multi-head", "--json")
    document = json.loads(out)
    assert status == 0
    assert (document["model"], document["version"]) == ("multi-head", 1)
    (result,) = document["results"]
    assert result["tokens"] == SENTENCE.split()
    assert result["predictions"][0] == {"name": "giver", "label": "I", "probability": 0.99, "row": 1, "id": 0}
    weights = result["outputs"]["weights"]
    assert (weights["data_type"], weights["shape"]) == ("FP32", [3, 7, 7])
    np.testing.assert_allclose(np.sum(weights["values"], -1), 1, rtol=1e-6)


def test_outputs_with_options(run, server):
    """--outputs takes what `score` takes; the most probable labels are listed, and chosen heads are printed."""
    outputs = '[{"name": "weights", "pairs": ["0.2"]}, {"name": "predictions", "top": 2}]'
    asked = (SENTENCE, "--model", "multi-head", "--outputs", outputs, "--target", server.grpc)
    status, out, _ = run("attend", *asked)
    assert status == 0
    assert "weights float32[1, 7, 7]" in out
    status, out, _ = run("attend", *asked, "--json")
    (result,) = json.loads(out)["results"]
    assert [len(each["top"]) for each in result["predictions"]] == [2, 2, 2]
    assert "embeddings float32[48]" in run("attend", *asked[:-3], "embeddings:mean", *asked[-2:])[1]
    status, _, err = run("attend", *asked, "--png", "weights.png")
    assert (status, "without options" in err) == (1, True)
    status, _, err = run("attend", SENTENCE, "--model", "multi-head", "--outputs", "[")
    assert (status, "is no JSON" in err) == (1, True)


def test_arrays_from_files(run, tmp_path):
    """Vectors come from .npy files; any stage can be shown."""
    np.save(tmp_path / "x.npy", np.eye(3))
    file = tmp_path / "x.npy"
    status, out, _ = run("attend", "--model", "any", "--query", file, "--key", file, "--outputs", "weights,output")
    assert status == 0
    assert "output float32[3, 3]" in out
    assert "[0.576 0.212 0.212]" in out


def test_entropy(run, server, tmp_path):
    """One number a row is shown like any other stage, by the real server; the help lists the stage."""
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    asked = ("--model", "dot", "--query", tmp_path / "x.npy", "--outputs", "entropy", "--target", server.grpc)
    status, out, _ = run("attend", *asked)
    assert status == 0
    assert "entropy float32[1, 3]" in out
    assert "[1.099 1.099 1.099]" in out
    assert "entropy" in run("attend", "--help")[1]


def test_png(run, tmp_path):
    """--png draws the picture into a file."""
    status, _, _ = run("attend", SENTENCE, "--model", "multi-head", "--png", tmp_path / "weights.png")
    assert status == 0
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_translate(run):
    """A translation is printed first, then the alignment of each word, by the head that aligns."""
    status, out, _ = run("translate", "a b c", "--model", "aloud")
    assert status == 0
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines == [
        ["C", "B", "A"],
        ["head", "1", "a", "b", "c"],
        ["C", "·", "·", "1.0"],
        ["B", "·", "1.0", "·"],
        ["A", "1.0", "·", "·"],
    ]


def test_translate_by_another_head(run):
    """--head chooses the head of the alignment; a head that the model does not have is one line and status 1."""
    _, out, _ = run("translate", "a b", "--model", "aloud", "--head", 0)
    assert out.split() == ["B", "A", "head", "0", "a", "b", "B", ".50", ".50", "A", ".50", ".50"]
    status, out, err = run("translate", "a b", "--model", "aloud", "--head", 2)
    assert (status, out, err) == (1, "", "error: head: there is no head 2; there are 0 to 1\n")


def test_translate_json(run):
    """--json prints the translation and its alignment as one document."""
    _, out, _ = run("translate", "a b", "--model", "aloud", "--json")
    assert json.loads(out) == {
        "model": "aloud",
        "version": 1,
        "text": "a b",
        "translation": "B A",
        "tokens": ["B", "A"],
        "memory_tokens": ["a", "b"],
        "alignment": [[0, 1], [1, 0]],
    }


def test_translate_png(run, tmp_path):
    """--png draws the alignment, where there is one."""
    status, _, _ = run("translate", "a b", "--model", "aloud", "--png", tmp_path / "alignment.png")
    assert status == 0
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")
    status, out, err = run("translate", "", "--model", "aloud", "--png", tmp_path / "none.png")
    assert (status, out.split()[:2]) == (1, ["no", "words"])
    assert err == "error: nothing was said, so there is no alignment to draw\n"


def test_translate_cut_short(run):
    """A translation that ended at the model's longest text is marked."""
    _, out, _ = run("translate", "a b c d e f", "--model", "aloud")
    assert out.split("\n")[1].strip() == "F E D C B … the model reads no longer text"


@pytest.mark.parametrize("options", [(), ("--json",), ("--show-attention",)], ids=str)
def test_generate_by_words(run, options):
    """A model of words goes on over the prompt as its source, up to the label of the end."""
    status, out, err = run("generate", "a b", "--model", "aloud", "--greedy", *options[:1])
    assert (status, err) == (0, "")
    if options == ("--json",):
        documents = [json.loads(line) for line in out.splitlines()]
        assert [(each["token"], each["text"]) for each in documents] == [("B", "B"), ("A", "B A"), ("[END]", "B A")]
        assert documents[-1]["ends"] == "end"
    elif options:
        looked_at = ["a", "0.50", "b", "0.50"]
        assert [line.split() for line in out.splitlines()] == [[word, *looked_at] for word in ("B", "A", "[END]")]
    else:
        assert out == "B A\n"


def test_generate_refused(run):
    """A model that predicts no next word is refused in words, and so are heads of an attention that is not shown."""
    status, out, err = run("generate", "a b", "--model", "aloud", "--pairs", "0.1")
    assert (status, out) == (2, "")
    assert "--pairs: chooses the heads of --show-attention; give both" in " ".join(err.replace("│", " ").split())
    status, out, err = run("generate", SENTENCE, "--model", "multi-head")
    assert (status, out) == (1, "")
    assert "'multi-head' does not translate or go on with a text" in err


def test_generate_names_the_option_of_the_model(run):
    """A model in front of the prompt, as an earlier version took it, is refused with the command that does."""
    for given in (("generate", "aloud", "a b"), ("generate", "a b")):
        status, out, err = run(*given)
        name = "aloud" if len(given) == 3 else "NAME"
        assert (status, out) == (2, "")
        assert f"attention-client generate 'a b' --model {name}" in " ".join(err.replace("│", " ").split())


def test_models(run):
    """Models are listed with version, block, device, size, heads, widths, tokens, predictions and an example."""
    status, out, _ = run("models", columns="")
    assert status == 0
    lines = [line.strip() for line in out.splitlines()]
    assert "dot-product 1  dot_product  cpu  0.5 MiB, 0.125 in memory" in lines
    multi = lines[lines.index("multi-head 2  multi_head  cpu  3 MiB, 0.25 twice, 2 in memory") :]
    shown = dict(line.split(maxsplit=1) for line in multi[1:])
    assert shown["layers"].startswith("0: 3 heads, ")
    assert shown["predicts"] == "giver, recipient, object"
    assert shown["try"] == "attention-client attend 'I gave my cat Tater a toy' --model multi-head"


def test_models_of_the_repository(run, server):
    """`models` shows of real models widths, the longest text and the figures of the training; --json is REST's list."""
    asked = ("models", "--target", server.grpc)
    shown = " ".join(run(*asked)[1].split())
    assert "layers 0: 3 heads, 16 wide, vectors 48 → 48" in shown
    assert "Held out: " in shown
    assert json.loads(run(*asked, "--json")[1]) == requests.get(f"http://{server.rest}/v1/models", timeout=60).json()


def test_a_refused_request(run):
    """A failed call is one line on stderr, and status 1."""
    status, out, err = run("attend", "x", "--model", "nope")
    assert (status, out) == (1, "")
    assert err == "error: no model 'nope'; there are aloud, dot-product, multi-head\n"


def test_the_field_is_named(run, tmp_path):
    """A bad array is named by its field."""
    np.save(tmp_path / "flags.npy", np.ones((2, 2), bool))
    status, _, err = run("attend", "--model", "dot-product", "--query", tmp_path / "flags.npy")
    assert status == 1
    assert err == "error: inputs[0].query: holds bool; it must hold numbers\n"


def test_nobody_at_the_address(run):
    """Without a server, the message says where it tried, and how to start one."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        status, _, err = run("models", "--target", address)
    assert status == 1
    assert err.startswith(f"error: cannot reach {address}: Connection refused. ")
    assert "`attention-server`" in err
    assert err.count("\n") == 1


def test_no_answer_in_time(run):
    """A deadline that passes says which."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        status, _, err = run("models", "--target", address, "--timeout", "0.2")
    assert (status, err) == (1, f"error: no answer from {address} within 0.2 s (--timeout)\n")


@pytest.mark.parametrize("arguments", [["attend", "x"], ["attend", "--model", "m", "--query", "none.npy"], ["x"]])
def test_wrong_usage(run, arguments):
    """Wrong usage is status 2, and says so on stderr."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "Usage: attention-client" in err


def without(package, *arguments):
    """Run the command where a package of its extra is not installed."""
    code = f"import sys; sys.modules[{package!r}] = None; from attention_client.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("arguments", [[], ["models"], ["models", "--help"]], ids=" ".join)
@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra(package, arguments):
    """Without its extra the command names in one line the package to install, with status 1."""
    missing = f"attention-client needs {package}"
    status, out, err = without(package, *arguments)
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"{missing}(\.\w+)*: pip install 'attention-service\[cli\]'\n", err)


def test_help_without_the_extra(run):
    """Without its extra `--help` names the commands, and the package to install."""
    status, out, err = without("typer", "--help")
    assert (status, err) == (0, "")
    (names,) = re.findall(r"Commands: (.*)", out)
    assert "pip install 'attention-service[cli]'" in out
    _, whole, _ = run("--help")
    assert names.split(", ") == sorted(re.findall(r"^│ (\w+) ", whole.partition("Commands")[2], re.MULTILINE))


def test_version(run):
    """`--version` prints the installed version, with the extra and without."""
    expected = f"attention-client {attention_client.__version__}\n"
    assert run("--version") == (0, expected, "")
    assert run("--token", "t", "--version") == (0, expected, "")
    assert without("typer", "--version") == (0, expected, "")


def test_the_package_has_a_version():
    """`__version__` is that of the installed package; an unknown name is an AttributeError, as in any module."""
    assert attention_client.__version__ == importlib.metadata.version("attention-service")
    assert not hasattr(attention_client, "__vision__")


def test_imports_are_lazy():
    """A program that imports the client loads nothing that only the command, a notebook or a picture needs."""
    code = "import sys, attention_client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name.partition(".")[2] for name in loaded if name.startswith("attention_client.")}
    assert {name for name in ours if name.startswith("display")} == {"display"}
    assert not ours & {"cli", "viewer"}
    assert not {"typer", "rich", "matplotlib", "importlib.metadata"} & set(loaded)


def test_plot(run, tmp_path):
    """One command draws a picture, an SVG with the tokens as text, and a page of its own; and prints nothing."""
    files = {kind: tmp_path / f"weights.{kind}" for kind in ("svg", "png", "html")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    status, out, err = run("plot", "--model", "multi-head", SENTENCE, *options)
    assert (status, out, err) == (0, "", "")
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in files["svg"].read_bytes()
    page = files["html"].read_text("utf-8")
    assert json.dumps(SENTENCE.split()) in page
    assert 'src="' not in page
    assert "url(" not in page


def test_arcs(run, service, tmp_path):
    """`plot --from` draws arcs from a word, and names tokens, heads, model, layer, scale; a page begins there."""
    drawn, page = tmp_path / "arcs.svg", tmp_path / "arcs.html"
    chosen = ("plot", SENTENCE, "--model", "multi-head", "--head", "2", "--head", "0")
    assert run(*chosen, "--from", "gave", "--svg", drawn) == (0, "", "")
    content = drawn.read_text("utf-8")
    said = re.findall("<!-- (.*?) -->", content, re.DOTALL)  # of letters, which are drawn as outlines
    assert [each for each in said if each in SENTENCE.split()] == SENTENCE.split()
    assert [each for each in said if each.startswith("head")] == ["head 2", "head 0"]
    assert any(re.search("multi-head, version [0-9]+, layer 0; arcs from “gave”", each) for each in said)
    assert any("7 points for 1" in each for each in said)
    assert run(*chosen[:4], "--from", "1", "--html", page)[0] == 0
    assert '"focus": 1' in page.read_text("utf-8") and '"style": "lines"' in page.read_text("utf-8")
    status, _, err = run(*chosen, "--from", "dog", "--svg", drawn)
    assert status == 1
    assert "--from: no token is 'dog'; there is I gave" in err


def test_weights_are_chosen(run, service, tmp_path):
    """`attend` and `plot` choose layer, heads, pairs and top k, and change heads, by the same options."""
    changes = ("--ablate", "0.1,1.*", "--score-temperature", "0.5")
    one = ("--layer", "0", "--head", "2", "--head", "0")
    assert run("attend", SENTENCE, "--model", "multi-head", *one, "--top-k", "3", *changes)[0] == 0
    assert run("attend", SENTENCE, "--model", "multi-head", "--pairs", "0.2, 0.0")[0] == 0
    drawn = tmp_path / "one.svg"
    assert run("plot", SENTENCE, "--model", "multi-head", *one, *changes, "--svg", drawn)[0] == 0
    assert re.findall(r"\bhead \d", drawn.read_text("utf-8")) == ["head 2", "head 0"]
    spans = ("--span", "a=b=0:2", "--span", "last=5:7")
    assert run("attend", SENTENCE, "--model", "multi-head", *spans)[0] == 0
    assert run("attend", SENTENCE, "--model", "multi-head", "--fold", "rollout")[0] == 0
    assert run("attend", SENTENCE, "--model", "multi-head", "--rows", "1, -1")[0] == 0
    attended, of_pairs, plotted, of_spans, folded, of_rows = service.requests
    assert list(of_rows.outputs[0].rows) == [1, -1]
    sent = [(each.name, each.begin, each.end, each.characters) for each in of_spans.outputs[0].spans]
    assert sent == [("a=b", 0, 2, False), ("last", 5, 7, False)]
    assert folded.outputs[0].fold == OutputSpec.FOLD_ROLLOUT
    weights = attended.outputs[0]
    assert (weights.name, list(weights.layers), list(weights.heads), weights.top_k) == ("weights", ["0"], [2, 0], 3)
    assert list(of_pairs.outputs[0].pairs) == ["0.2", "0.0"]
    assert (list(plotted.outputs[0].layers), list(plotted.outputs[0].heads)) == (["0"], [2, 0])
    for request in (attended, plotted):
        assert [(list(each.layers), list(each.heads)) for each in request.ablate] == [(["0"], [1]), (["1"], [])]
        assert request.score_temperature == 0.5
    assert not of_pairs.ablate and not of_pairs.HasField("score_temperature")


def test_masks(run, service, tmp_path):
    """`attend` and `plot` hide keys by the same options: a window, a matrix as JSON or a file, and chosen layers."""
    (tmp_path / "mask.json").write_text('{"allowed": [[true, false]], "bias": [[0, -1.5]]}')
    options = ("--causal", "top_left", "--window=-1,0", "--mask-json", tmp_path / "mask.json", "--mask-layer", "0")
    assert run("attend", "a b", "--model", "multi-head", *options)[0] == 0
    assert run("plot", "a b", "--model", "multi-head", *options, "--html", tmp_path / "w.html")[0] == 0
    assert run("attend", "a b", "--model", "multi-head", "--mask-json", "[1, 0.5]")[0] == 0
    *both, added = [request.inputs[0].mask for request in service.requests]
    for mask in both:
        assert (mask.causal, mask.window.left, mask.window.right) == (mask.CAUSAL_TOP_LEFT, -1, 0)
        assert codec.decode(mask.allowed).tolist() == [[True, False]]
        assert codec.decode(mask.bias).tolist() == [[0, -1.5]]
        assert list(mask.layers) == ["0"]
    assert codec.decode(added.bias).tolist() == [1, 0.5]
    assert not added.HasField("allowed") and not added.HasField("window")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("attend", "--rows", "1,b"), "--rows: 'b' is no number in a list such as 0,2,-1"),
        (("attend", "--window", "1"), "--window: '1' is not LEFT,RIGHT, such as 2,0"),
        (("attend", "--mask-json", "none.json"), "--mask-json: neither JSON nor a file of it"),
        (("attend", "--mask-json", "[[1], [1, 2]]"), "--mask-json: rows of a matrix must have one length"),
        (("attend", "--mask-json", '["a"]'), "--mask-json: must hold true and false, or numbers alone"),
        (("attend", "--mask-json", '{"mask": []}'), '--mask-json: must be a matrix, or {"allowed": .., "bias": ..}'),
        (("attend", "--mask-layer", "0"), "--mask-layer: there is no mask to limit"),
        (("attend", "--pairs", "0.1", "--head", "1"), "--pairs: names layers and heads"),
        (("attend", "--outputs", "output", "--top-k", "2"), "--outputs: says which weights"),
        (("attend", "--span", "first=1"), "--span: 'first=1' is no NAME=FROM:TO"),
        (("attend", "--span", "0:1"), "--span: '0:1' is no NAME=FROM:TO"),
        (("attend", "--ablate", "1"), "--ablate: '1' is no LAYER.HEAD"),
        (("plot", "--html", "w.html", "--head", "1"), "the page has every head"),
        (
            ("plot", "--svg", "w.svg", "--layer", "*", "--head", "1"),
            "--head: all layers are drawn with all their heads",
        ),
        (("plot", "--svg", "w.svg", "--layer", "*", "--from", "I"), "--from: arcs are of one layer"),
    ],
    ids=str,
)
def test_a_choice_that_is_none(run, options, words):
    """Options that contradict each other are refused in words."""
    command, *rest = options
    status, out, err = run(command, SENTENCE, "--model", "multi-head", *rest)
    assert (status, out) == (2, "")
    assert words in " ".join(err.replace("│", " ").split())


def test_plot_vectors(run, tmp_path):
    """Rows and columns of vectors are named by position."""
    np.save(tmp_path / "query.npy", np.eye(3))
    status, _, _ = run(
        "plot", "--model", "dot-product", "--query", tmp_path / "query.npy", "--html", tmp_path / "weights.html"
    )
    assert status == 0
    assert '"queries": ["0", "1", "2"]' in (tmp_path / "weights.html").read_text("utf-8")


def test_plot_refused(run, tmp_path):
    """Without a file, with a file of another kind, or with an unknown layer, the command says what would do."""
    status, _, err = run("plot", "--model", "multi-head", SENTENCE)
    assert status == 2
    assert "--html FILE" in err
    status, _, err = run("plot", "--model", "multi-head", SENTENCE, "--html", tmp_path / "w.pdf")
    assert status == 2
    assert "'w.pdf' has to end in .html" in err
    assert not (tmp_path / "w.pdf").exists()
    status, _, err = run("plot", "--model", "multi-head", SENTENCE, "--layer", "9", "--png", tmp_path / "weights.png")
    assert (status, err) == (1, "error: there is no layer '9'; there is 0\n")


def test_png_without_matplotlib(run, monkeypatch, tmp_path):
    """--png without its extra names the package to install, after the answer."""
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "attention_client.display.plot", raising=False)
    monkeypatch.delattr(display, "plot", raising=False)
    status, out, err = run("attend", SENTENCE, "--model", "multi-head", "--png", tmp_path / "weights.png")
    assert status == 1
    assert "from gave" in out
    assert err == "error: --png needs matplotlib: pip install 'attention-service[plot]'\n"
