"""A small transformer of the manifest's format, written by hand, and its computation in NumPy and float64.

By default three layers, each with properties of its own: `0` gives every stage; `1` is causal and gives no
contributions; `2` has narrower heads and a bias, and gives no output. The head reads `hidden`: a label of the
vocabulary for each row, and a class from the first row.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from attention_proto.attention.v1.attention_pb2 import AttendGraph, File, Layer, Manifest, Predictor, Segment, Text
from attention_proto.folder import FORMAT
from google.protobuf import json_format
from onnx import numpy_helper, parser
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("[UNK]", "ein", "und", "zwanzig", "Katzen", "Hunde")
CLASSES = ("noun", "number", "none")
WIDTH, HEADS = 8, 2
HEAD_DIMS = (4, 4, 3)
STAGES = (("output", "contributions", "hidden"), ("output", "hidden"), ("hidden",))
FIRST, LONGEST = 2, 9  # position of the first token, and the number of tokens that have positions
ALWAYS = ("q", "k", "v", "scores", "weights", "heads")
HEADER = '<ir_version: 10, opset_import: ["" : 23]>'


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        words: the vocabulary; the first one is the unknown word.
        classes: the labels that are read from the first row; none in a model without a head.
        width: D.
        heads: H.
        head_dims: Dh of each layer.
        stages: those that each layer's manifest lists.
        causal, biased: the layers that are causal, or have a bias.
        longest: the number of tokens that have positions.
        goes_on: whether the model predicts the next token of a text, and nothing else.
    """

    words: Sequence[str] = WORDS
    classes: Sequence[str] = CLASSES
    width: int = WIDTH
    heads: int = HEADS
    head_dims: Sequence[int] = HEAD_DIMS
    stages: Sequence[Sequence[str]] = STAGES
    causal: Sequence[int] = (1,)
    biased: Sequence[int] = (2,)
    longest: int = LONGEST
    goes_on: bool = False


@dataclass(frozen=True)
class Transformer:
    """The matrices of the model by name, in float32."""

    shape: Shape
    matrices: dict[str, np.ndarray]

    def embeddings(self, words: str) -> np.ndarray:
        """Return hidden state 0 of a text, [T, D]."""
        ids = [self.shape.words.index(word) for word in words.split()]
        return self.matrices["words"].astype(np.float64)[ids] + self.matrices["places"][FIRST : FIRST + len(ids)]

    def layers(self, words: str, added: np.ndarray | float = 0.0) -> list[dict[str, np.ndarray]]:
        """Return every stage of every layer for a text.

        Args:
            words: the text.
            added: what a mask adds to the scores, broadcastable to [H, T, T].
        """
        x, found = self.embeddings(words), []
        length = len(x)
        for index, width in enumerate(self.shape.head_dims):
            q, k, v = (self._heads(x, name, index) for name in "qkv")
            scores = q @ k.transpose(0, 2, 1) * width**-0.5
            if index in self.shape.biased:
                scores = scores + self.bias(length)
            mask = added + (np.where(np.tri(length, dtype=bool), 0, -np.inf) if index in self.shape.causal else 0.0)
            weights = np.exp(scores + mask - (scores + mask).max(-1, keepdims=True))
            weights = weights / weights.sum(-1, keepdims=True)
            heads = weights @ v
            combine = self.matrices[f"o{index}"].reshape(self.shape.heads, width, self.shape.width)
            contributions = heads @ combine
            output = contributions.sum(0) + self.matrices[f"b{index}"]
            x = np.tanh(x + output)
            stages = dict(zip(ALWAYS, (q, k, v, scores, weights, heads), strict=True))
            found.append(stages | {"contributions": contributions, "output": output, "hidden": x})
        return found

    def bias(self, length: int) -> np.ndarray:
        """Return the bias of the last layer, [H, T, T]: the distance times a slope."""
        distance = np.arange(length)[None, :] - np.arange(length)[:, None]
        return self.matrices["slopes"].astype(np.float64)[:, None, None] * distance

    def chances(self, hidden: np.ndarray, predictor: str) -> np.ndarray:
        """Return the probabilities of a predictor, [N, labels], of rows of `hidden`."""
        logits = hidden @ self.matrices[predictor]
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def _heads(self, x: np.ndarray, name: str, index: int) -> np.ndarray:
        return np.stack(np.split(x @ self.matrices[f"{name}{index}"], self.shape.heads, -1))


def drawn(shape: Shape) -> Transformer:
    """Draw the matrices, so wide that weights are far from even."""
    rng = np.random.default_rng(11)
    wide, heads = shape.width, shape.heads
    sizes = {"words": (len(shape.words), wide), "places": (FIRST + shape.longest, wide), "slopes": (heads,)}
    for index, width in enumerate(shape.head_dims):
        sizes |= {f"{name}{index}": (wide, heads * width) for name in "qkv"}
        sizes |= {f"o{index}": (heads * width, wide), f"b{index}": (wide,)}
    sizes |= {"token": (wide, len(shape.words)), "class": (wide, len(shape.classes))}
    return Transformer(
        shape, {name: np.float32(0.7) * rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    )


def write(folder: Path, shape: Shape = Shape()) -> Transformer:
    """Write a version of a model into a new folder; return it."""
    return _Writer(folder, drawn(shape)).write()


class _Writer:
    """Writes the files of a version and its manifest.

    Graphs are in ONNX's text form. A segment reads the register of the one before it and writes the other one.
    """

    def __init__(self, folder: Path, model: Transformer) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._model = model
        self._shape = model.shape

    def write(self) -> Transformer:
        """Write the version."""
        manifest = Manifest(
            format=FORMAT, block="transformer", architecture="ByHand", hidden_dim=self._shape.width, opset=23
        )
        manifest.text.CopyFrom(self._text())
        manifest.segments.extend(Segment(graph=self._segment(index)) for index in range(len(self._shape.head_dims) + 1))
        manifest.layers.extend(self._layer(index) for index in range(len(self._shape.head_dims)))
        if self._shape.goes_on:
            self._add_next_token(manifest)
        elif self._shape.classes:
            self._add_head(manifest)
        content = json_format.MessageToDict(manifest, preserving_proto_field_name=True)
        (self._folder / "manifest.json").write_text(json.dumps(content))
        return self._model

    def _add_head(self, manifest: Manifest) -> None:
        manifest.predictors.add(name="token", rows=Predictor.ROWS_ALL, labels=self._shape.words)
        manifest.predictors.add(name="class", rows=Predictor.ROWS_FIRST, labels=self._shape.classes)
        names = [predictor.name for predictor in manifest.predictors]
        body = " ".join(
            f"{name}_logits = MatMul(hidden, {name}_matrix) {name} = Softmax({name}_logits)" for name in names
        )
        outputs = ", ".join(f"float[N,{len(each.labels)}] {each.name}" for each in manifest.predictors)
        matrices = {f"{name}_matrix": name for name in names}
        manifest.head.CopyFrom(self._graph("head", f"float[N,{self._shape.width}] hidden", outputs, body, matrices))

    def _add_next_token(self, manifest: Manifest) -> None:
        labels = len(self._shape.words)
        manifest.predictors.add(name="token", rows=Predictor.ROWS_LAST, vocabulary=True)
        manifest.logits_dim = labels
        outputs = f"float[N,{labels}] logits, float[N,{labels}] token"
        body = "logits = MatMul(hidden, matrix) token = Softmax(logits)"
        inputs = f"float[N,{self._shape.width}] hidden"
        manifest.head.CopyFrom(self._graph("head", inputs, outputs, body, {"matrix": "token"}))

    def _text(self) -> Text:
        tokenizer = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(self._shape.words)}, unk_token=self._shape.words[0])
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        front = self._graph(
            "front",
            "int64[B,T] tokens, int64[B,T] position_ids",
            f"float[B,T,{self._shape.width}] query",
            "word = Gather(words, tokens) place = Gather(places, position_ids) query = Add(word, place)",
            {"words": "words", "places": "places"},
        )
        file = self._file("tokenizer.json", tokenizer.to_str().encode())
        return Text(
            tokenizer=file,
            allow_unknown=True,
            front=front,
            max_tokens=self._shape.longest,
            position_base=FIRST,
            pool="mean",
        )

    def _segment(self, index: int) -> File:
        """Write the graph from the site before to the one behind; the first begins, and the last ends."""
        wide, heads = self._shape.width, self._shape.heads
        inputs, outputs, body, matrices = f"float[B,T,{wide}] query", [], "", []
        x = "query"
        if index:
            before = index - 1
            inputs = f"float[B,T,{heads * self._shape.head_dims[before]}] heads, float[B,T,{wide}] carry_{before % 2}"
            body = f"product = MatMul(heads, o{before}) output = Add(product, b{before}) "
            body += f"sum = Add(carry_{before % 2}, output) hidden = Tanh(sum) "
            outputs = [
                f"float[B,T,{wide}] {name}" for name in ("output", "hidden") if name in self._shape.stages[before]
            ]
            matrices = [f"o{before}", f"b{before}"]
            x = "hidden"
        if index < len(self._shape.head_dims):
            body += " ".join(f"{name} = MatMul({x}, {name}{index})" for name in "qkv")
            body += f" carry_{index % 2} = Identity({x})"
            outputs += [f"float[B,T,{heads * self._shape.head_dims[index]}] {name}" for name in "qkv"]
            outputs.append(f"float[B,T,{wide}] carry_{index % 2}")
            matrices += [f"{name}{index}" for name in "qkv"]
        return self._graph(f"segment-{index}", inputs, ", ".join(outputs), body, {name: name for name in matrices})

    def _layer(self, index: int) -> Layer:
        width, heads, wide = self._shape.head_dims[index], self._shape.heads, self._shape.width
        layer = Layer(
            name=str(index),
            path=f"layers.{index}.attention",
            heads=heads,
            key_value_heads=heads,
            query_dim=wide,
            key_dim=wide,
            value_dim=wide,
            head_dim=width,
            value_head_dim=width,
            output_dim=wide if "output" in self._shape.stages[index] else 0,
            scale=width**-0.5,
            causal=index in self._shape.causal,
            stages=self._shape.stages[index],
        )
        shape = f"float[B,T,{heads * width}] q, float[B,S,{heads * width}] k, float[B,S,{heads * width}] v"
        file = self._graph(
            f"explain-masked-{width}",
            f"{shape}, float[M,G,T,S] mask",
            f"float[B,T,{heads * width}] heads, float[B,{heads},T,S] weights",
            f"heads, key, value, weights = Attention<q_num_heads={heads}, kv_num_heads={heads}, "
            f"scale={width**-0.5!r}, qk_matmul_output_mode=3>(q, k, v, mask)",
            {},
        )
        layer.attend.append(AttendGraph(file=file, weights=True, mask=True))
        if index in self._shape.biased:
            layer.bias.CopyFrom(self._bias())
        return layer

    def _bias(self) -> File:
        body = (
            "row = Unsqueeze(query_positions, last) distance = Sub(key_positions, row) "
            "number = Cast<to=1>(distance) slope = Reshape(slopes, heads) "
            "product = Mul(slope, number) bias = Unsqueeze(product, first)"
        )
        shapes = {"last": np.array([1]), "first": np.array([0]), "heads": np.array([self._shape.heads, 1, 1])}
        inputs = "int64[T] query_positions, int64[S] key_positions"
        return self._graph(
            "bias", inputs, f"float[1,{self._shape.heads},T,S] bias", body, {"slopes": "slopes"} | shapes
        )

    def _graph(self, name: str, inputs: str, outputs: str, body: str, constants: dict[str, str | np.ndarray]) -> File:
        text = f"{HEADER} {name.replace('-', '_')} ({inputs}) => ({outputs}) {{ {body} }}"
        made = parser.parse_model(text)
        for constant, value in constants.items():
            array = self._model.matrices[value] if isinstance(value, str) else value
            made.graph.initializer.append(numpy_helper.from_array(array, constant))
        onnx.checker.check_model(made, full_check=True)
        return self._file(f"{name}.onnx", made.SerializeToString())

    def _file(self, name: str, content: bytes) -> File:
        (self._folder / name).write_bytes(content)
        return File(name=name, sha256=hashlib.sha256(content).hexdigest())
