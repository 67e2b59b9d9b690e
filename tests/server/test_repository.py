"""Repositories with wrong manifests: refused at the start, by folder and reason, before anything is served."""

import shutil

import numpy as np
import onnx
import pytest
import requests
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.repository.loader import RepositoryError, load
from onnx import external_data_helper, numpy_helper
from serving import HANG, run_server, start_server

from tests.server.spoil import edit, insert

PORTS = ("--rest-port", 0, "--grpc-port", 0)


@pytest.fixture
def folder(repository, tmp_path):
    """A version's folder that may be spoiled: `copy("multi")`."""

    def copy(model):
        shutil.copytree(repository / model / "1", tmp_path / "models" / model / "1")
        return tmp_path / "models" / model / "1"

    return copy


def assert_refused(folder, *words):
    """Load a version, as a server does at its start; it must be refused, with these words."""
    with pytest.raises(RepositoryError) as refusal:
        load(folder, OnnxRuntime("cpu", 1), 2**30)
    for word in words:
        assert word in refusal.value.log_reason, refusal.value.log_reason


def assert_start_refused(folder, *words, cwd=None):
    """Start a server on a folder's repository; it must end with 1, and say which folder and why."""
    done = run_server("--models", folder.parents[1], *PORTS, cwd=cwd)
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"attention-server: no model can be served: {folder}: "), last
    for word in words:
        assert word in last, last


def test_changed_bytes(folder):
    """A file with another hash than the manifest's is refused by name: of a graph, the tokenizer, and the matrices
    too."""
    for name in ("attend.onnx", "tokenizer.json", "block.safetensors", "head.onnx"):
        spoiled = folder("multi-head")
        with (spoiled / name).open("ab") as file:
            file.write(b"\n")
        assert_refused(spoiled, name, "SHA-256")
        shutil.rmtree(spoiled)


@pytest.mark.parametrize("name", ["attend.onnx", "project.onnx", "explain-explicit.onnx"])
def test_a_missing_file(folder, name):
    """A file that the manifest names must be there."""
    spoiled = folder("multi")
    (spoiled / name).unlink()
    assert_refused(spoiled, name)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "manifest"),
        ("{", "manifest"),
        ("[]", "manifest"),
        ('{"format": 2, "blocks": 2}', "blocks"),
        ('{"format": 2}', "layers"),
    ],
)
def test_what_is_no_manifest(folder, content, word):
    """A manifest that is no JSON, or not of the contract's form, is refused."""
    spoiled = folder("dot")
    (spoiled / "manifest.json").write_text(content)
    assert_refused(spoiled, word)


def test_a_manifest_that_is_no_text(folder):
    """A manifest of bytes that are no UTF-8 is refused."""
    spoiled = folder("dot")
    (spoiled / "manifest.json").write_bytes(b"\xff\xfe\x00")
    assert_refused(spoiled, "manifest")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_another_format(folder, number):
    """A manifest of another format is refused with both numbers, and the command that writes it anew."""
    spoiled = folder("dot")
    edit(spoiled, lambda manifest: manifest.update(format=number))
    assert_refused(spoiled, f"format {number}", "format 2", "attention-export block")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/b.onnx", "..", ".", "", "a\0b"])
def test_paths_that_lead_away(folder, name):
    """A file's name in the manifest is a plain name."""
    spoiled = folder("dot")
    edit(spoiled, lambda manifest: manifest["layers"][0]["attend"][0]["file"].update(name=name))
    assert_refused(spoiled)


def test_a_link_that_leads_away(folder, tmp_path):
    """A link to a file elsewhere is judged by its bytes: with another hash it is refused, unread by anything else."""
    spoiled = folder("dot")
    (tmp_path / "secret").write_text("secret")
    (spoiled / "attend.onnx").unlink()
    (spoiled / "attend.onnx").symlink_to(tmp_path / "secret")
    assert_refused(spoiled, "SHA-256")


def rename(path, **names):
    """Rename inputs and outputs of a graph."""
    model = onnx.load(path)
    for part in (*model.graph.input, *model.graph.output):
        part.name = names.get(part.name, part.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("attend.onnx", {"output": "result"}),
        ("explain.onnx", {"weights": "w"}),
        ("project.onnx", {"k": "keys"}),
        ("attend-masked.onnx", {"mask": "m"}),
    ],
)
def test_graphs_that_name_others(folder, file, names):
    """A graph with inputs or outputs of another place is refused, with the names it has and the names it needs."""
    spoiled = folder("multi")
    rename(spoiled / file, **names)
    edit(spoiled)
    assert_refused(spoiled, file, *names.values())


def test_what_is_no_graph(folder):
    """A file that is no ONNX graph is refused."""
    spoiled = folder("dot")
    (spoiled / "attend.onnx").write_bytes(b"no graph")
    edit(spoiled)
    assert_refused(spoiled)


def test_a_place_without_a_graph(folder):
    """A layer needs a graph for weights and for masks."""
    spoiled = folder("dot")
    edit(spoiled, lambda manifest: manifest["layers"][0].update(attend=manifest["layers"][0]["attend"][:2]))
    assert_refused(spoiled, "weights")


def test_data_outside_the_graph(folder, tmp_path):
    """A graph that reads its numbers from another file, which has no hash, is refused."""
    spoiled = folder("multi")
    model = onnx.load(spoiled / "project.onnx")
    external_data_helper.convert_model_to_external_data(model, location="outside.bin", size_threshold=0)
    aside = tmp_path / "aside"
    aside.mkdir()
    onnx.save(model, aside / "project.onnx")
    assert (aside / "outside.bin").stat().st_size
    shutil.copy(aside / "project.onnx", spoiled)
    shutil.copy(aside / "outside.bin", spoiled)  # beside the graph, and where the server is started
    edit(spoiled)
    assert_start_refused(spoiled, cwd=aside)


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("multi", {"query_dim": 23}),
        ("multi", {"key_dim": 25}),
        ("multi", {"output_dim": 19}),
        ("multi", {"heads": 5, "key_value_heads": 5}),
        ("multi", {"heads": 1, "key_value_heads": 1}),
        ("multi", {"heads": 0}),
        ("multi", {"key_value_heads": 0}),
        ("multi", {"head_dim": 7}),
        ("multi", {"value_head_dim": 6}),
    ],
    ids=str,
)
def test_widths_that_lie(folder, model, change):
    """A manifest with other widths or heads than its graphs' is refused: clients rely on both."""
    spoiled = folder(model)
    edit(spoiled, lambda manifest: manifest["layers"][0].update(change))
    assert_refused(spoiled)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(block="attention"),
        lambda manifest: manifest.pop("block"),
        lambda manifest: manifest["predictors"][0].pop("rows"),
        lambda manifest: manifest["predictors"][0].update(name="taker"),
        lambda manifest: manifest["predictors"][0].update(labels=["one"]),
        lambda manifest: manifest.pop("head"),
    ],
    ids=["block", "no-block", "rows", "predictor", "labels", "no-head"],
)
def test_a_manifest_that_contradicts_its_files(folder, change):
    """An unknown block, a predictor that reads from nowhere, is no output of the head, or has wrong labels: refused."""
    spoiled = folder("multi-head")
    edit(spoiled, change)
    assert_refused(spoiled)


def test_what_is_no_tokenizer(folder):
    """A tokenizer that cannot be read is refused."""
    spoiled = folder("multi-head")
    (spoiled / "tokenizer.json").write_text("{}")
    edit(spoiled)
    assert_refused(spoiled)


def less_mean(axis):
    """Subtract a tensor's mean over an axis."""
    return ("ReduceMean", [np.array([axis])], {}), ("Neg", [], {}), ("Add", ["="], {})


# The running sum of ones along the rows is 1 + the position.
BY_POSITION = (
    ("Mul", [np.float32(0)], {}),
    ("Add", [np.float32(1)], {}),
    ("CumSum", [np.array(1)], {}),
    ("Mul", ["="], {}),
)
POSITION = BY_POSITION[:-1]
BY_FAR_POSITION = (*POSITION, ("Add", [np.float32(-99)], {}), ("Max", [np.float32(1)], {}), ("Mul", ["="], {}))
SLIGHTLY_BY_POSITION = (*POSITION, ("Mul", [np.float32(1e-3)], {}), ("Add", [np.float32(1)], {}), ("Mul", ["="], {}))
BY_NEIGHBOURS = less_mean(1)
BY_LATER_ROWS = (("CumSum", [np.array(1)], {"reverse": 1, "exclusive": 1}), ("Add", ["="], {}))
BY_COMPANIONS = less_mean(0)
# Rounded to int8 by the largest number of the whole tensor.
ONE_SCALE = (
    ("Abs", [], {}),
    ("ReduceMax", [], {}),
    ("Div", [np.float32(127)], {}),
    ("Reciprocal", [], {}),
    ("Mul", ["="], {}),
    ("Round", [], {}),
)
ROW, SEQUENCE = "a row of", "the others of its batch"


DEPENDENT = [
    ("dot", "attend.onnx", "query", BY_POSITION, ROW),
    ("dot", "explain-masked.onnx", "query", BY_FAR_POSITION, ROW),
    ("multi", "attend.onnx", "query", SLIGHTLY_BY_POSITION, ROW),
    ("multi", "explain.onnx", "query", BY_LATER_ROWS, ROW),
    ("multi", "project.onnx", "key", BY_FAR_POSITION, ROW),
    ("dot", "attend-masked.onnx", "query", BY_NEIGHBOURS, ROW),
    ("multi", "explain.onnx", "query", BY_NEIGHBOURS, ROW),
    ("multi", "explain.onnx", "weights", less_mean(2), ROW),
    ("multi", "attend.onnx", "query", ONE_SCALE, ROW),
    ("multi", "project.onnx", "key", BY_POSITION, ROW),
    ("multi", "project.onnx", "value", BY_NEIGHBOURS, ROW),
    ("multi", "pool.onnx", "query", BY_POSITION, ROW),
    ("multi-head", "head.onnx", "output", less_mean(0), ROW),
    ("multi", "attend.onnx", "query", BY_COMPANIONS, SEQUENCE),
    ("multi", "attend.onnx", "k", BY_COMPANIONS, SEQUENCE),
    ("multi", "project.onnx", "v", BY_COMPANIONS, SEQUENCE),
    ("multi-head", "front.onnx", "query", BY_COMPANIONS, SEQUENCE),
]


def test_rows_that_depend_on_each_other(folder):
    """A graph that computes a row from its position, from further rows or from its batch is refused, with the
    difference:
    the server computes chosen rows, cut sequences and batches with the same graphs."""
    good = folder("dot")
    for version, (model, file, tensor, steps, _) in enumerate(DEPENDENT, 2):
        spoiled = folder(model) if model != "dot" else good
        moved = spoiled.parent / str(version)
        (shutil.copytree if model == "dot" else shutil.move)(spoiled, moved)
        insert(moved / file, tensor, *steps)
        edit(moved)
    with start_server(good.parents[1]) as server:
        index = requests.post(f"{server.url}/v2/repository/index", timeout=HANG).json()
    reasons = {int(entry["version"]): entry["reason"] for entry in index}
    assert reasons.pop(1) == ""
    assert len(reasons) == len(DEPENDENT)
    for version, (_, file, tensor, _, word) in enumerate(DEPENDENT, 2):
        assert reasons[version].startswith(f"{file}: "), (version, tensor, reasons[version])
        assert word in reasons[version], (version, tensor, reasons[version])


def test_no_models(tmp_path):
    """A folder without models, and none at all, are refused by name."""
    for folder in (tmp_path, tmp_path / "absent"):
        done = run_server("--models", folder, *PORTS)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert str(folder) in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "mode"),
    [
        ("attend.onnx", ()),
        ("manifest.json", ()),
        ("attend.onnx", ("--repository-mode", "poll")),
        ("attend.onnx", ("--repository-mode", "explicit", "--load-model=*")),
    ],
)
def test_one_bad_version_of_two(folder, missing, mode):
    """A version that cannot be served keeps no second one from being served: it is in the log and the index with the
    reason. With --strict it ends the start."""
    good = folder("dot")
    bad = good.parent / "2"
    shutil.copytree(good, bad)
    (bad / missing).unlink()
    with start_server(good.parents[1], *mode) as server:
        assert f"{missing} cannot be read" in server.log
        index = requests.post(f"{server.url}/v2/repository/index", timeout=HANG).json()
        assert [(entry["version"], entry["state"]) for entry in index] == [("1", "READY"), ("2", "UNAVAILABLE")]
        assert missing in index[1]["reason"]
        answer = requests.post(f"{server.url}/v1/models/dot:attend", json={"query": [[1.0]]}, timeout=HANG)
        assert answer.json()["version"] == 1
    done = run_server("--models", good.parents[1], *PORTS, *mode, "--strict")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"attention-server: a version cannot be served, and strict is set: {bad}: {missing}"), last


def test_nothing_that_can_be_served(folder):
    """Where no version can be served the start ends, with the reason of each."""
    first, second = folder("dot"), folder("multi")
    for spoiled in (first, second):
        (spoiled / "attend.onnx").unlink()
    assert_start_refused(first, "attend.onnx", f"; {second}: attend.onnx cannot be read")


def test_what_is_no_version_is_left_alone(folder):
    """Files beside the models, and folders without a version's name, are ignored."""
    good = folder("dot")
    for name in ("latest", "01", "0", ".export-x"):
        shutil.copytree(good, good.parent / name)
    (good.parents[1] / "README").write_text("x")
    (good.parents[1] / ".git").mkdir()
    with start_server(good.parents[1]) as server:
        assert server.log.count("model loaded") == 1


def test_numbers_are_in_the_graph(repository):
    """An exported version has no numbers outside its graphs, and no path or stack trace inside."""
    for path in repository.rglob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        for initializer in model.graph.initializer:
            assert not external_data_helper.uses_external_data(initializer)
            assert numpy_helper.to_array(initializer) is not None
        assert not model.metadata_props
        assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
