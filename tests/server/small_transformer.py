"""A transformer of two layers, written by hand as a version's folder, and the same in NumPy.

Layer 0 is causal and has a bias of relative positions; layer 1 has a window. The keys have one head for two of the
queries. Positions begin at 2, and token types are added to the embeddings.
"""

import hashlib
from pathlib import Path

import numpy as np
from attention_proto.attention.v1.attention_pb2 import AttendGraph, File, Layer, Manifest, Predictor
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[UNK]", "a", "b", "c", "d", "e", "f"]
WIDTH, HEADS, HEAD, BASE, MAX_TOKENS, WINDOW, REACH = 8, 2, 4, 2, 9, 3, 2
LABELS = ["x", "y", "z"]
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
WIDTHS = {"q": WIDTH, "k": HEAD, "v": HEAD, "heads": WIDTH}


def parameters():
    """Draw the model's matrices."""
    rng = np.random.default_rng(5)
    shapes = {"words": (len(WORDS), WIDTH), "positions": (BASE + MAX_TOKENS, WIDTH), "types": (2, WIDTH)}
    shapes |= {"turn": (BASE + MAX_TOKENS, WIDTH), "table": (HEADS, 2 * REACH + 1), "labels": (WIDTH, len(LABELS))}
    for layer in (0, 1):
        shapes |= {f"q{layer}": (WIDTH, WIDTH), f"k{layer}": (WIDTH, HEAD), f"v{layer}": (WIDTH, HEAD)}
        shapes |= {f"o{layer}": (WIDTH, WIDTH), f"b{layer}": (WIDTH,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


W = parameters()


def graph(inputs, outputs, nodes, constants=()):
    """Return ONNX: inputs and outputs are shapes by name; a node is (operator, inputs, outputs[, attributes])."""
    ints = ("tokens", "position_ids", "token_type_ids", "query_positions", "key_positions")
    values = [
        [helper.make_tensor_value_info(name, INT if name in ints else FLOAT, shape) for name, shape in part.items()]
        for part in (inputs, outputs)
    ]
    made = [
        helper.make_node(op, ins, outs, **(attributes[0] if attributes else {})) for op, ins, outs, *attributes in nodes
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(constants).items()]
    model = helper.make_model(
        helper.make_graph(made, "graph", *values, tensors), opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    return model.SerializeToString(deterministic=True)


def rows(width):
    return ["B", "T", width]


def front():
    names = {"tokens": "words", "position_ids": "positions", "token_type_ids": "types"}
    nodes = [("Gather", [table, name], [f"{table}_rows"]) for name, table in names.items()]
    nodes += [("Sum", [f"{table}_rows" for table in names.values()], ["query"])]
    return graph(
        {name: ["B", "T"] for name in names},
        {"query": rows(WIDTH)},
        nodes,
        {table: W[table] for table in names.values()},
    )


def projections(layer, source):
    return [("MatMul", [source, f"{name}{layer}"], [name if name != "q" or layer else "flat"]) for name in "qkv"]


def segment_0():
    """query, position_ids -> q, k, v and the residual; q is turned by its position."""
    nodes = [
        *projections(0, "query"),
        ("Gather", ["turn", "position_ids"], ["turned"]),
        ("Add", ["flat", "turned"], ["q"]),
        ("Mul", ["query", "one"], ["carry_0"]),
    ]
    constants = {name: W[name] for name in ("q0", "k0", "v0", "turn")} | {"one": np.float32(1)}
    outputs = {name: rows(WIDTHS[name]) for name in "qkv"} | {"carry_0": rows(WIDTH)}
    return graph({"query": rows(WIDTH), "position_ids": ["B", "T"]}, outputs, nodes, constants)


def segment_1(*, dependent=False, square=False, inputs=()):
    """heads, carry_0 -> output and hidden of layer 0, q, k, v of layer 1; less the mean of all rows if dependent."""
    nodes = [
        ("MatMul", ["heads", "o0"], ["mixed"]),
        ("Add", ["mixed", "b0"], ["output"]),
        ("Add", ["output", "carry_0"], ["summed"]),
        ("Tanh", ["summed"], ["bounded"]),
        ("ReduceMean", ["bounded", "axis"], ["mean"]),
        ("Sub", ["bounded", "mean"], ["hidden"]) if dependent else ("Identity", ["bounded"], ["hidden"]),
        *projections(1, "hidden"),
        ("Mul", ["hidden", "one"], ["next_carry_0"]),
    ]
    constants = {name: W[name] for name in ("o0", "b0", "q1", "k1", "v1")}
    constants |= {"one": np.float32(1), "axis": np.array([1])}
    given = {name: rows(WIDTHS[name]) for name in "qkv"}
    given |= {name: rows(WIDTH) for name in ("output", "hidden", "next_carry_0")}
    if square:  # a tensor with two axes of positions
        nodes += [
            ("Transpose", ["hidden"], ["turned"], {"perm": [0, 2, 1]}),
            ("MatMul", ["hidden", "turned"], ["carry_1"]),
        ]
        given["carry_1"] = ["B", "T", "T"]
    return graph({"heads": rows(WIDTH), "carry_0": rows(WIDTH)} | dict(inputs), given, nodes, constants)


def segment_2(*, dependent=False):
    """heads, carry_0 -> output and hidden of layer 1; less the mean of all rows if dependent."""
    nodes = [
        ("MatMul", ["heads", "o1"], ["mixed"]),
        ("Add", ["mixed", "b1"], ["output"]),
        ("Add", ["output", "carry_0"], ["summed"]),
        ("ReduceMean", ["summed", "axis"], ["mean"]),
        ("Sub", ["summed", "mean"], ["hidden"]) if dependent else ("Identity", ["summed"], ["hidden"]),
    ]
    constants = {"o1": W["o1"], "b1": W["b1"], "axis": np.array([1])}
    return graph(
        dict.fromkeys(("heads", "carry_0"), rows(WIDTH)),
        dict.fromkeys(("output", "hidden"), rows(WIDTH)),
        nodes,
        constants,
    )


def bias():
    """A bias of the clipped distance, for each head: query_positions [T], key_positions [S] -> [1, H, T, S]."""
    nodes = [
        ("Unsqueeze", ["query_positions", "last"], ["from"]),
        ("Sub", ["key_positions", "from"], ["distance"]),
        ("Clip", ["distance", "least", "most"], ["clipped"]),
        ("Add", ["clipped", "most"], ["column"]),
        ("Gather", ["table", "column"], ["found"], {"axis": 1}),
        ("Unsqueeze", ["found", "first"], ["bias"]),
    ]
    constants = {"table": W["table"], "least": np.int64(-REACH), "most": np.int64(REACH)}
    constants |= {"first": np.array([0]), "last": np.array([1])}
    return graph({"query_positions": ["T"], "key_positions": ["S"]}, {"bias": [1, HEADS, "T", "S"]}, nodes, constants)


def attend(*, weights, mask):
    """q, k, v [, mask] -> heads [, weights]."""
    inputs = {name: ["B", "T" if name == "q" else "S", WIDTHS[name]] for name in "qkv"}
    inputs |= {"mask": ["B", "M", "T", "S"]} if mask else {}
    outputs = {"heads": rows(WIDTH)} | ({"weights": ["B", HEADS, "T", "S"]} if weights else {})
    constants = {"q_num_heads": HEADS, "kv_num_heads": 1, "scale": 0.5}
    names = ["heads", "", "", "weights"] if weights else ["heads"]
    constants |= {"qk_matmul_output_mode": 3} if weights else {}
    return graph(inputs, outputs, [("Attention", list(inputs), names, constants)])


def head():
    nodes = [("MatMul", ["hidden", "labels"], ["logits"]), ("Softmax", ["logits"], ["kind"])]
    outputs = {name: ["N", len(LABELS)] for name in ("kind", "logits")}
    return graph({"hidden": ["N", WIDTH]}, outputs, nodes, {"labels": W["labels"]})


def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[UNK]"])
    return made.to_str().encode()


def write(folder: Path, change=None, dependent=(), **files):
    """Write the model as a version's folder.

    Args:
        folder: to be made.
        change: changes the manifest.
        dependent: the segments, 1 and 2, whose rows depend on all rows.
        files: contents in place of the model's own, by name without `.onnx`, with `_` for `-`.
    """
    folder.mkdir(parents=True)
    contents = {
        "front": front(),
        "segment-0": segment_0(),
        "segment-1": segment_1(dependent=1 in dependent),
        "segment-2": segment_2(dependent=2 in dependent),
        "bias": bias(),
        "head": head(),
    }
    kinds = {
        "attend": (False, False),
        "attend-masked": (False, True),
        "explain": (True, False),
        "explain-masked": (True, True),
    }
    contents |= {name: attend(weights=weights, mask=mask) for name, (weights, mask) in kinds.items()}
    contents |= {name.replace("_", "-"): content for name, content in files.items()}

    def file(name, content):
        (folder / name).write_bytes(content)
        return File(name=name, sha256=hashlib.sha256(content).hexdigest())

    entries = {name: file(f"{name}.onnx", content) for name, content in contents.items()}
    manifest = Manifest(format=2, block="transformer", architecture="SmallModel", hidden_dim=WIDTH, opset=23)
    for index in (0, 1):
        layer = manifest.layers.add(name=str(index), heads=HEADS, key_value_heads=1, head_dim=HEAD, value_head_dim=HEAD)
        layer.MergeFrom(Layer(query_dim=WIDTH, key_dim=WIDTH, value_dim=WIDTH, output_dim=WIDTH, scale=0.5))
        layer.stages.extend(["output", "contributions", "hidden"])
        for name, (weights, mask) in kinds.items():
            layer.attend.append(AttendGraph(file=entries[name], weights=weights, mask=mask))
    manifest.layers[0].causal = True
    manifest.layers[0].bias.CopyFrom(entries["bias"])
    manifest.layers[1].window = WINDOW
    for index in range(3):
        manifest.segments.add(graph=entries[f"segment-{index}"], rows_dependent=index in dependent)
    manifest.text.front.CopyFrom(entries["front"])
    manifest.text.tokenizer.CopyFrom(file("tokenizer.json", tokenizer()))
    manifest.text.max_tokens, manifest.text.position_base, manifest.text.allow_unknown = MAX_TOKENS, BASE, True
    manifest.head.CopyFrom(entries["head"])
    manifest.logits_dim = len(LABELS)
    manifest.predictors.append(Predictor(name="kind", rows=Predictor.ROWS_ALL, labels=LABELS))
    if change is not None:
        change(manifest)
    (folder / "manifest.json").write_text(json_format.MessageToJson(manifest))
    return folder


def embed(text):
    """Return what the front gives for a text, float64 [T, D]."""
    ids = [WORDS.index(word) for word in text.split()]
    positions = np.arange(len(ids)) + BASE
    return (W["words"][ids] + W["positions"][positions] + W["types"][0]).astype(np.float64)


def reference(query, added=0.0, dependent=()):
    """Compute every stage in float64: a dict for each layer.

    Args:
        query: [T, D].
        added: a request's mask, added to the scores, [1 or H, T, T]; or one for each layer.
        dependent: as in `write`.
    """
    w = {name: array.astype(np.float64) for name, array in W.items()}
    length = len(query)
    distance = np.arange(length) - np.arange(length)[:, None]  # key - query
    hides = [distance > 0, np.abs(distance) >= WINDOW]
    biases = [w["table"][:, np.clip(distance, -REACH, REACH) + REACH], 0.0]
    x, layers = query, []
    for layer in (0, 1):
        q = x @ w[f"q{layer}"] + (w["turn"][np.arange(length) + BASE] if layer == 0 else 0)
        q = q.reshape(length, HEADS, HEAD).transpose(1, 0, 2)
        k, v = (x @ w[f"{name}{layer}"] for name in "kv")
        scores = q @ k.T * 0.5 + biases[layer]
        masked = np.where(hides[layer], -np.inf, scores + (added[layer] if isinstance(added, tuple) else added))
        largest = masked.max(-1, keepdims=True)
        powers = np.exp(masked - np.where(np.isfinite(largest), largest, 0))
        weights = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)
        heads = weights @ v  # [H, T, Dv]
        parts = np.einsum("htv,hvd->htd", heads, w[f"o{layer}"].reshape(HEADS, HEAD, WIDTH))
        output = parts.sum(0) + w[f"b{layer}"]
        hidden = np.tanh(output + x) if layer == 0 else output + x
        hidden -= hidden.mean(0) if layer + 1 in dependent else 0
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1)
        layers.append({"q": q, "k": k[None], "v": v[None], "scores": scores, "weights": weights, "entropy": entropy})
        sums = powers.sum(-1)
        lse = np.where(sums > 0, np.log(np.maximum(sums, 1e-300)) + largest[..., 0], -1e30)
        layers[-1] |= {"lse": lse, "heads": heads, "contributions": parts, "output": output, "hidden": hidden}
        x = hidden
    return layers
