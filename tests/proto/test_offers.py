"""The stages that a model offers, and the choice of layers and pairs, from the manifest alone."""

import pytest
from attention_proto.attention.v1.attention_pb2 import File, Layer, Manifest, Text
from attention_proto.offers import NotOfferedError, chosen_layers, chosen_pairs, lengths, offers
from attention_proto.stages import STAGES

SITES = [
    Layer(name="0", stages=["output", "hidden"]),
    Layer(name="1.a", stages=["output", "contributions"], head_dim=8),
    Layer(name="2", stages=["output", "hidden", "contributions"]),
]
SHAPE = Layer(heads=4, key_value_heads=2, head_dim=4, value_head_dim=3, output_dim=10, query_dim=12)


def manifest(front: str = "front.onnx") -> Manifest:
    made = Manifest(hidden_dim=11, text=Text(front=File(name=front)) if front else None)
    for site in SITES:
        layer = made.layers.add()
        layer.CopyFrom(SHAPE)
        layer.MergeFrom(site)
    return made


def test_a_layer_offers_what_its_manifest_lists():
    """Stages of every attention are always there; output, contributions and hidden where listed."""
    model = manifest()
    always = {"embeddings", "q", "k", "v", "scores", "weights", "entropy", "lse", "received", "statistics", "heads"}
    for layer in model.layers:
        assert {stage.name for stage in STAGES.values() if offers(stage, layer, model)} == always | set(layer.stages)


def test_embeddings_need_a_text():
    """A model that reads no text has no embeddings."""
    assert not offers(STAGES["embeddings"], manifest().layers[0], manifest(front=""))
    with pytest.raises(NotOfferedError, match="this model gives no embeddings") as refused:
        chosen_layers(STAGES["embeddings"], (), manifest(front=""))
    assert refused.value.option == "name"


def test_the_width_is_that_of_the_level():
    """D is the width of a site's output, of the model's hidden vectors, or of its embeddings."""
    layer = manifest().layers[0]
    found = {name: dict(lengths(stage, layer, manifest())) for name, stage in STAGES.items()}
    assert found["contributions"] == {"H": 4, "T": 0, "D": 10}
    assert found["output"] == {"T": 0, "D": 10}
    assert found["hidden"] == {"T": 0, "D": 11}
    assert found["embeddings"] == {"T": 0, "D": 12}
    assert found["k"] == {"Hkv": 2, "S": 0, "Dh": 4}
    assert found["heads"] == {"H": 4, "T": 0, "Dv": 3}
    assert found["statistics"] == {"H": 4, "C": 8}


@pytest.mark.parametrize(
    ("stage", "names", "chosen"),
    [
        ("weights", ("*",), [0, 1, 2]),
        ("weights", ("2", "0"), [2, 0]),
        ("weights", (), [2]),
        ("hidden", ("*",), [0, 2]),
        ("hidden", (), [2]),
        ("contributions", ("1.a",), [1]),
        ("embeddings", (), [0]),
    ],
)
def test_layers(stage, names, chosen):
    """Layers come in the order named; `*` is every layer that gives the stage, no name the last layer."""
    assert chosen_layers(STAGES[stage], names, manifest()) == chosen


@pytest.mark.parametrize(
    ("stage", "names", "option", "words"),
    [
        ("hidden", ("1.a",), "layers", "layer 1.a gives no hidden; there is that of 0, 2"),
        ("weights", ("3",), "layers", "there is no layer '3'; there is 0, 1.a, 2"),
        ("weights", ("*", "3"), "layers", "there is no layer '3'; there is 0, 1.a, 2"),
        ("weights", ("0", "0", "3"), "layers", "names '0' twice"),
        ("weights", ("*", "*"), "layers", "names '*' twice"),
    ],
)
def test_layers_that_are_not_there(stage, names, option, words):
    """A layer that is not there, is named twice, or lacks the stage, is refused, beside `*` too."""
    with pytest.raises(NotOfferedError) as refused:
        chosen_layers(STAGES[stage], names, manifest())
    assert (str(refused.value), refused.value.option) == (words, option)


def test_the_last_layer_may_lack_a_stage():
    """Where no layer is named, and the last one lacks the stage, the refusal is of the name."""
    model = manifest()
    del model.layers[2].stages[1:]
    with pytest.raises(NotOfferedError, match="layer 2 gives no hidden; there is that of 0") as refused:
        chosen_layers(STAGES["hidden"], (), model)
    assert refused.value.option == "name"


def test_pairs():
    """A pair is a layer, whose name may have dots, and a head; k and v have the heads of keys."""
    assert chosen_pairs(STAGES["weights"], ("2.3", "1.a.0", "0.1"), manifest()) == [(2, 3), (1, 0), (0, 1)]
    assert chosen_pairs(STAGES["v"], ("2.1",), manifest()) == [(2, 1)]


@pytest.mark.parametrize(
    ("stage", "pairs", "words"),
    [
        ("weights", ("2.0", "7.0"), "there is no layer '7' for the pair '7.0'; there is 0, 1.a, 2"),
        ("weights", ("2.4",), "there is no head 4 for the pair '2.4'; layer 2 has 4, from 0"),
        (
            "weights",
            ("2." + 5000 * "1",),
            f"there is no head {16 * '1'} for the pair '2.{62 * '1'}'; layer 2 has 4, from 0",
        ),
        ("v", ("2.2",), "there is no head 2 for the pair '2.2'; layer 2 has 2, from 0"),
        ("weights", ("2",), "'2' is no pair LAYER.HEAD, such as '2.0'"),
        ("weights", ("2.-1",), "'2.-1' is no pair LAYER.HEAD, such as '2.0'"),
        (
            "weights",
            (f"2.{'9' * 5000}",),
            f"there is no head {'9' * 16} for the pair '2.{'9' * 62}'; layer 2 has 4, from 0",
        ),
        ("weights", ("2.\u0663",), "'2.\u0663' is no pair LAYER.HEAD, such as '2.0'"),
        ("weights", ("2.1", "2.01"), "names '2.01' twice"),
        ("contributions", ("2.1", "0.1"), "layer 0 gives no contributions; there is that of 1.a, 2"),
        ("q", ("0.1", "1.a.1"), "q is [T, 4] for the pair '0.1' and [T, 8] for '1.a.1': ask for them apart"),
    ],
)
def test_pairs_that_are_not_there(stage, pairs, words):
    """A pair without a layer or head, twice, or of another shape than the first is refused by name."""
    with pytest.raises(NotOfferedError) as refused:
        chosen_pairs(STAGES[stage], pairs, manifest())
    assert str(refused.value) == words
