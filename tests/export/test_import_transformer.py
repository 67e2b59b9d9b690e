"""The parts of an imported version: graphs of sites, the folder, tokenizer and pooling."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.parts import ChainParts, SiteSpec, TransformerParts
from attention_export.importing.transformer.pooling import Pooling, read_pooling
from attention_export.importing.transformer.sites import SiteShape
from attention_export.importing.transformer.tokenizer import ImportedTokenizer, read_tokenizer
from attention_export.importing.transformer.version import write_version
from attention_proto.attention.v1.attention_pb2 import Manifest, Side
from attention_proto.folder import named_files
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.export.checkpoints import checkpoint, with_files

SENTENCES = Path(__file__).with_name("sentences.txt").read_text().splitlines()
TEXTS = [*SENTENCES[:8], "Ünïcödé ÀÉ 東京 , 12.5% of it's [MASK] ok", "UPPER lower  two  spaces\tand\na line"]


# Sites ---------------------------------------------------------------------------------------------------------------


def attention(shape: SiteShape, q: NDArray, k: NDArray, v: NDArray, mask: NDArray | float) -> tuple[NDArray, NDArray]:
    """Return heads [B, T, H * Dv] and weights [B, H, T, S] in float64, from the definition."""

    def split(x: NDArray, heads: int) -> NDArray:
        return x.astype(np.float64).reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    group = shape.heads // shape.key_value_heads
    keys, values = (split(x, shape.key_value_heads).repeat(group, 1) for x in (k, v))
    scores = split(q, shape.heads) @ keys.transpose(0, 1, 3, 2) * shape.scale
    if shape.softcap:
        scores = shape.softcap * np.tanh(scores / shape.softcap)
    powers = np.exp(scores + mask)
    sinks = np.exp(np.array(shape.sinks).reshape(1, -1, 1, 1)) if shape.sinks else 0.0
    weights = powers / np.maximum(powers.sum(-1, keepdims=True) + sinks, 1e-300)
    return (weights @ values).transpose(0, 2, 1, 3).reshape(*q.shape[:2], -1), weights


@pytest.mark.parametrize(
    "shape",
    [
        SiteShape(heads=4, key_value_heads=4, head_dim=8, value_head_dim=8, scale=0.35, softcap=0.0),
        SiteShape(heads=4, key_value_heads=2, head_dim=8, value_head_dim=8, scale=0.5, softcap=2.0),
        SiteShape(heads=6, key_value_heads=1, head_dim=7, value_head_dim=5, scale=1.0, softcap=1.5),
        SiteShape(4, 2, head_dim=8, value_head_dim=6, scale=0.4, softcap=0.0, sinks=(0.5, -2.0, 3.0, 0.0)),
    ],
)
def test_graphs_of_a_site_compute_its_attention(shape: SiteShape) -> None:
    """Every graph of a site gives softmax(softcap(q.k * scale) + mask) . v, zeros in rows that are masked whole.

    A sink takes a part of each row, which is left out of the weights.
    """
    rng = np.random.default_rng(0)
    queries, keys = 5, 9
    feeds = {
        name: rng.standard_normal((2, length, heads * width)).astype(np.float32)
        for name, length, heads, width in (
            ("q", queries, shape.heads, shape.head_dim),
            ("k", keys, shape.key_value_heads, shape.head_dim),
            ("v", keys, shape.key_value_heads, shape.value_head_dim),
        )
    }
    mask = (2 * rng.standard_normal((2, shape.heads, queries, keys))).astype(np.float32)
    mask[rng.random(mask.shape) < 0.3] = -np.inf
    mask[:, :, 2] = -np.inf
    for graph in shape.graphs():
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(graph.content, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, feeds | ({"mask": mask} if graph.mask else {})), strict=True))
        heads, weights = attention(shape, **feeds, mask=mask if graph.mask else 0.0)
        np.testing.assert_allclose(found["heads"], heads, atol=2e-6, err_msg=graph.file)
        assert ("weights" in found) == graph.weights
        if graph.weights:
            np.testing.assert_allclose(found["weights"], weights, atol=2e-6, err_msg=graph.file)


@pytest.mark.parametrize(
    ("heads", "shared", "scale", "words"), [(4, 3, 1.0, "multiple of the key-value heads"), (4, 4, 0.0, "scale")]
)
def test_a_site_that_attention_cannot_compute_is_refused(heads: int, shared: int, scale: float, words: str) -> None:
    """Heads that share unevenly, and a scale of 0, which means a default in the manifest, are refused in words."""
    with pytest.raises(ImportFailure, match=words):
        SiteShape(heads=heads, key_value_heads=shared, head_dim=8, value_head_dim=8, scale=scale, softcap=0.0)


# A version's folder --------------------------------------------------------------------------------------------------


def constant_graph(*matrices: NDArray) -> bytes:
    """Return a graph that holds matrices."""
    values = [onnx.numpy_helper.from_array(matrix, f"m{index}") for index, matrix in enumerate(matrices)]
    graph = onnx.helper.make_graph([], "constants", [], [], values)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)]).SerializeToString()


def made_parts(*segments: bytes, front: bytes, heads: tuple[int, ...]) -> TransformerParts:
    """Return parts with given graphs, one site for each number of heads."""
    sites = tuple(
        SiteSpec(
            name=str(index),
            path=f"layer.{index}",
            heads=count,
            key_value_heads=count,
            head_dim=24 // count,
            value_head_dim=24 // count,
            output_dim=24,
            scale=0.5,
            softcap=0.0,
            causal=False,
            window=0,
            bias=None,
            stages=("output", "hidden"),
        )
        for index, count in enumerate(heads)
    )
    chain = ChainParts(
        side=Side.SIDE_TARGET,
        front=lambda: front,
        segments=tuple((lambda graph=graph: graph) for graph in segments),
        rows_dependent=(False,) * len(segments),
        front_rows_dependent=False,
        sites=sites,
        query_dim=16,
        hidden_dim=24,
        takes_token_types=False,
        vocabulary_size=0,
    )
    return TransformerParts(
        architecture="MadeModel",
        chains=(chain,),
        position_base=2,
        max_tokens=60,
        start_token=None,
        end_tokens=(),
        head=None,
        notes=(),
    )


def written(parts: TransformerParts, folder: Path) -> Manifest:
    """Write a version with MiniLM's tokenizer."""
    return write_version(parts, ImportedTokenizer(Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))), folder)


def test_equal_graphs_are_one_file_named_by_content(tmp_path: Path) -> None:
    """Segments that are equal, and the graphs of sites of one shape, stand once; the folder has no further file."""
    front, first, inner, last = (constant_graph(np.full((4, 4), i, np.float32)) for i in range(4))
    manifest = written(made_parts(first, inner, inner, last, front=front, heads=(3, 3, 4)), tmp_path)
    names = [segment.graph.name for segment in manifest.segments]
    assert names[0] == "segment-0.onnx" and names[3] == "segment-3.onnx"
    assert names[1] == names[2] == f"segment-{manifest.segments[1].graph.sha256[:16]}.onnx"
    files = [[graph.file.name for graph in layer.attend] for layer in manifest.layers]
    assert files[0] == files[1]
    assert not set(files[0]) & set(files[2])
    assert {file.name for file in named_files(manifest)} == {path.name for path in tmp_path.iterdir()}
    assert manifest.doubled_bytes == 0


def test_matrices_in_two_files_are_counted(tmp_path: Path) -> None:
    """A matrix above 1 KiB that stands in a second file, also transposed, is counted in `doubled_bytes`."""
    matrix = np.arange(600, dtype=np.float32).reshape(20, 30)
    small = np.ones((2, 2), np.float32)
    graphs = constant_graph(small, np.ones((9, 40), np.float32)), constant_graph(small, matrix.T)
    manifest = written(made_parts(*graphs, front=constant_graph(small, matrix), heads=(3,)), tmp_path)
    assert manifest.doubled_bytes == matrix.nbytes


def test_the_manifest_says_what_the_parts_say(tmp_path: Path) -> None:
    """Sizes, constants and limits of sites and text reach the manifest."""
    graphs = [constant_graph(np.full((4, 4), i, np.float32)) for i in range(3)]
    manifest = written(made_parts(graphs[0], graphs[1], front=graphs[2], heads=(3,)), tmp_path)
    (layer,) = manifest.layers
    assert (layer.heads, layer.key_value_heads, layer.head_dim, layer.value_head_dim) == (3, 3, 8, 8)
    assert (layer.query_dim, layer.output_dim, layer.scale, layer.path) == (16, 24, 0.5, "layer.0")
    assert list(layer.stages) == ["output", "hidden"]
    assert (manifest.block, manifest.architecture, manifest.hidden_dim) == ("transformer", "MadeModel", 24)
    assert (manifest.text.max_tokens, manifest.text.position_base, manifest.text.allow_unknown) == (60, 2, True)


# Tokenizers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [("tokenizer.json", "tokenizer_config.json"), ("vocab.txt",)])
def test_tokens_are_those_of_transformers(files: tuple[str, ...], tmp_path: Path) -> None:
    """`tokenizer.json`, as written or converted of a vocabulary, gives AutoTokenizer's ids, without padding."""
    folder = with_files(checkpoint(), tmp_path, "config.json", *files)
    found = read_tokenizer(folder, vocabulary=30522)
    written = Tokenizer.from_buffer(found.content())
    expected = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        encoding = written.encode(text)
        theirs = expected(text)
        assert encoding.ids == theirs["input_ids"]
        assert encoding.type_ids == theirs["token_type_ids"]


def test_the_longest_text_is_the_lesser_of_model_and_tokenizer(tmp_path: Path) -> None:
    """`model_max_length` counts where it is below the model's positions; the number that stands for none does not."""
    folder = with_files(checkpoint(), tmp_path, "config.json", "tokenizer.json", "tokenizer_config.json")
    assert read_tokenizer(folder, vocabulary=30522).limit(1024) == 512
    assert read_tokenizer(folder, vocabulary=30522).limit(100) == 100
    assert read_tokenizer(folder, vocabulary=30522).limit(0) == 512
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": int(1e30)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_tokenizer(folder, vocabulary=30522).limit(1024) == 1024


def test_a_tokenizer_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    """A folder without vocabulary, and a tokenizer with ids beyond the embedding, are refused in words."""
    folder = with_files(checkpoint(), tmp_path, "config.json")
    with pytest.raises(ImportFailure, match="has no tokenizer"):
        read_tokenizer(folder, vocabulary=30522)
    with_files(checkpoint(), tmp_path, "tokenizer.json")
    with pytest.raises(ImportFailure, match="ids go up to 30521, and the model embeds 30000"):
        read_tokenizer(folder, vocabulary=30000)


# Pooling -------------------------------------------------------------------------------------------------------------


def test_pooling_is_read_of_modules() -> None:
    """MiniLM's files say that the mean of the hidden states is normalized."""
    assert read_pooling(checkpoint()) == Pooling("mean", normalize=True)
    assert read_pooling(checkpoint(), "first") == Pooling("first", normalize=True)


@pytest.mark.parametrize(
    ("modules", "config", "pool", "note"),
    [
        ((), {}, "", ""),
        (("Transformer", "Pooling"), {"pooling_mode_cls_token": True}, "first", ""),
        (("Transformer", "Pooling"), {"pooling_mode": "lasttoken"}, "last", ""),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "", "pooling_mode_max_tokens"),
        (("Transformer", "Pooling"), {"pooling_mode": ["cls", "mean"]}, "", "cls and mean"),
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, "", "Dense"),
    ],
)
def test_pooling_that_is_not_served_is_left_out(
    modules: tuple[str, ...], config: dict[str, object], pool: str, note: str, tmp_path: Path
) -> None:
    """Several modes, another mode, or a module behind the pooling are left out, and a note says so."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    entries = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{index}_{kind}"}
        for index, kind in enumerate(modules)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    found = read_pooling(tmp_path)
    assert (found.pool, found.normalize) == (pool, False)
    assert bool(found.notes) == bool(note) and note in " ".join(found.notes)


def test_a_pooling_of_another_name_is_refused(tmp_path: Path) -> None:
    """`--pool` takes three names."""
    with pytest.raises(ImportFailure, match="'max' is none of mean, first, last"):
        read_pooling(tmp_path, "max")
