"""The programs of the documentation. A trained reaction model, imported and served, maps atoms as its authors publish.

The published maps and confidences are those of rxnmapper 0.4.3's own tests (MIT), of reactions whose spelling these
leave as it is.
"""

import importlib.util
import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from attention_client import AttentionClient, OutputSpec
from attention_export.importing.transformer.source import load_source, quiet
from attention_export.importing.transformer.tokenizer import read_tokenizer
from serving import ROOT, Server, start_server
from transformers import AlbertModel

from tests.export.checkpoints import import_by_command

CHECKPOINT = Path(sys.prefix) / "share/rxnmapper/rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
PUBLISHED = {
    "C(C)O.BrC(C)>>CCOCC": (
        "[CH2:2]([CH3:1])[OH:3].Br[CH2:4][CH3:5]>>[CH3:1][CH2:2][O:3][CH2:4][CH3:5]",
        0.9754605679009868,
    ),
    "CCO.BrCFC>>CCOCFC": (
        "[CH3:1][CH2:2][OH:3].Br[CH2:4][F:5][CH3:6]>>[CH3:1][CH2:2][O:3][CH2:4][F:5][CH3:6]",
        0.9730222157275086,
    ),
    "COC(=O)CCBr.O=C[O-]->[K+]>>COC(=O)CCOC(=O)C": (
        (
            "[CH3:1][O:2][C:3](=[O:4])[CH2:5][CH2:6]Br.[O:9]=[CH:8][O-:7]->[K+]>>"
            "[CH3:1][O:2][C:3](=[O:4])[CH2:5][CH2:6][O:7][C:8](=[O:9])[CH3:10]"
        ),
        0.9322116305783666,
    ),
}
RING = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
RING_CONFIDENCE = 0.9565619900376546


def program(name: str) -> ModuleType:
    """Return a program of docs/examples as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The program that maps the atoms of a reaction."""
    return program("atom_map")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the checkpoint, imported by the command that the documentation shows."""
    models = tmp_path_factory.mktemp("rxnmapper")
    result = import_by_command(CHECKPOINT, models, "rxnmapper", "--task", "base", "--license", "MIT")
    assert result.exit_code == 0, result.stderr
    assert "SMILES" in result.stderr
    with start_server(models) as started:
        yield started


@pytest.mark.parametrize(
    ("kind", "architecture", "task", "last"),
    [
        ("decoder", "Qwen3ForCausalLM", "causal-lm", "sat"),
        ("encoder-decoder", "T5ForConditionalGeneration", "seq2seq-lm", "</s>"),
    ],
)
def test_tiny_checkpoints_are_read(
    kind: str, architecture: str, task: str, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of each kind is one that the import reads, with the tokenizer that its family has."""
    monkeypatch.setattr(sys, "argv", ["tiny_checkpoint.py", kind, str(tmp_path)])
    with quiet():
        program("tiny_checkpoint").main()
    source = load_source(tmp_path)
    assert (source.architecture, source.task) == (architecture, task)
    tokens = read_tokenizer(tmp_path, source.config.vocab_size).tokenizer.encode("the cat sat").tokens
    assert (tokens[:3], tokens[-1]) == (["the", "cat", "sat"], last)


def test_weights_are_those_of_transformers(server: Server) -> None:
    """Every head of every layer over gRPC, and the one pair over both protocols, equal eager attention."""
    model = AlbertModel.from_pretrained(CHECKPOINT, attn_implementation="eager", dtype=torch.float64)
    every = [OutputSpec("weights", layers=["*"]), OutputSpec("weights", alias="pair", pairs=["10.5"])]
    with AttentionClient(server.grpc) as client, torch.no_grad():
        for reaction in (*PUBLISHED, RING):
            result = client.attend("rxnmapper", text=reaction, outputs=every)
            (tokenized,) = client.tokenize("rxnmapper", [reaction])
            ids = torch.tensor([tokenized.token_ids])
            expected = [weights[0].numpy() for weights in model(ids, output_attentions=True).attentions]
            for layer, weights in enumerate(expected):
                np.testing.assert_allclose(result[f"weights@{layer}"], weights, atol=1e-5)
            np.testing.assert_allclose(result["pair"], expected[10][5:6], atol=1e-5)
            body = json.dumps({"text": reaction, "outputs": [{"name": "weights", "pairs": ["10.5"]}]}).encode()
            with urllib.request.urlopen(f"{server.url}/v1/models/rxnmapper:attend", body) as answer:
                (found,) = json.load(answer)["results"]
            np.testing.assert_allclose(found["outputs"]["weights"]["values"], expected[10][5:6], atol=1e-5)


def test_maps_are_the_published_ones(server: Server, example: ModuleType) -> None:
    """Each atom of the product has the published source, and the map the published confidence."""
    for reaction, (mapped, confidence) in PUBLISHED.items():
        reactants, product = (re.findall(r"\[[^]]*?(?::(\d+))?]|Br", side) for side in mapped.split(">>"))
        expected = [reactants.index(number) if number in reactants else -1 for number in product]
        found = example.ask(server.grpc, "rxnmapper", reaction)
        assert found.sources == expected
        np.testing.assert_allclose(found.confidence, confidence, rtol=2e-6)
    ring = example.ask(server.grpc, "rxnmapper", RING)
    np.testing.assert_allclose(ring.confidence, RING_CONFIDENCE, rtol=2e-6)
    assert [ring.reactants[source].element for source in ring.sources] == [atom.element for atom in ring.product]


def test_neighbours_are_found_along_branches_and_rings(example: ModuleType) -> None:
    """Bonds go along chains, around branches, and over rings of one and of two digits, never over a dot."""
    tokens = ["C", "%12", "C", "(", "N", ")", "C", "=", "1", "C", "1", "%12", ".", "O"]
    chosen = example.atoms(tokens, 0, len(tokens))
    joined = example.bonds(tokens, chosen)
    pairs = {(int(one), int(other)) for one, other in zip(*np.nonzero(joined), strict=True) if one < other}
    assert [atom.element for atom in chosen] == ["C", "C", "N", "C", "C", "O"]
    assert pairs == {(0, 1), (1, 2), (1, 3), (3, 4), (0, 4)}
    spelled = ["[CLS]", "[nH]", "[13CH3]", "[Na+]", "[se]", "*", "[1*]", "Cl", "#", "[SEP]"]
    assert [atom.element for atom in example.atoms(spelled, 0, len(spelled))] == ["N", "C", "Na", "Se", "*", "*", "Cl"]


def test_the_command_prints_and_draws(
    server: Server,
    example: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The program of the documentation prints a line for each atom of the product, and draws as many lines."""
    drawing = tmp_path / "map.svg"
    arguments = ["C(C)O.BrC(C)>>CCOCC", "--target", server.grpc, "--figure", str(drawing)]
    monkeypatch.setattr(sys, "argv", ["atom_map.py", *arguments])
    example.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["product", "0", "C", "reactant", "1", printed[0].split()[-1]]
    assert printed[-1] == "confidence 0.975461"
    assert len(printed) == 6
    assert drawing.read_text().count("stroke: #d97706") == 5
