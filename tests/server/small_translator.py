"""An encoder-decoder of two layers a side, written by hand as a version's folder, and the same in NumPy.

The first site of the encoder has a bias of relative positions; the decoder's own sites are causal. A source ends with
`[END]`; before each target stands `[START]`. The head predicts the next token from the last row.
"""

import hashlib

import numpy as np
from attention_proto.attention.v1.attention_pb2 import AttendGraph, File, Layer, Manifest, Predictor, Side
from google.protobuf import json_format
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from tests.server import small_transformer as small
from tests.server.small_transformer import HEAD, HEADS, WIDTH, graph, rows

WORDS = ["[UNK]", "[START]", "[END]", "a", "b", "c", "d", "e", "f"]
START, END, MAX_SOURCE, MAX_TARGET = 1, 2, 12, 9
SITES = ("encoder.0", "encoder.1", "decoder.0", "decoder.0.cross", "decoder.1", "decoder.1.cross")
ENCODER, DECODER, CROSS = SITES[:2], (SITES[2], SITES[4]), (SITES[3], SITES[5])


def parameters():
    """Draw the model's matrices."""
    rng = np.random.default_rng(8)
    shapes = {"words": (len(WORDS), WIDTH), "positions": (MAX_SOURCE, WIDTH), "labels": (WIDTH, len(WORDS))}
    for site in SITES:
        shapes |= {f"{name} {site}": (WIDTH, WIDTH) for name in "qkvo"} | {f"b {site}": (WIDTH,)}
    return {name: np.float32(0.5) * rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


W = parameters()


def front():
    nodes = [
        ("Gather", ["words", "tokens"], ["word"]),
        ("Gather", ["positions", "position_ids"], ["position"]),
        ("Add", ["word", "position"], ["query"]),
    ]
    inputs = {name: ["B", "T"] for name in ("tokens", "position_ids")}
    return graph(inputs, {"query": rows(WIDTH)}, nodes, {name: W[name] for name in ("words", "positions")})


def segment(before, behind, kept=()):
    """Return the graph between two sites, each None at an end of the chain.

    Args:
        before: the site whose heads are read.
        behind: the site whose q, and k and v unless it is a cross site, are given.
        kept: cross sites whose k and v are given.
    """
    nodes, constants, inputs, outputs = [], {}, {"query": rows(WIDTH)}, {}
    x = "query"
    if before:
        inputs = {"heads": rows(WIDTH), "carry_0": rows(WIDTH)}
        constants |= {"matrix": W[f"o {before}"], "row": W[f"b {before}"]}
        x = "x" if behind in CROSS else "hidden"
        nodes += [("MatMul", ["heads", "matrix"], ["mixed"]), ("Add", ["mixed", "row"], ["output"])]
        nodes += [("Add", ["output", "carry_0"], ["summed"]), ("Tanh", ["summed"], [x])]
        outputs |= {"output": rows(WIDTH)} | ({} if x == "x" else {"hidden": rows(WIDTH)})
    given = [] if not behind else ["q"] if behind in CROSS else ["q", "k", "v"]
    projected = {name: f"{name} {behind}" for name in given}
    projected |= {f"cross_{name}_{i}": f"{name} {site}" for i, site in enumerate(kept) for name in "kv"}
    for tensor, matrix in projected.items():
        constants[matrix] = W[matrix]
        nodes.append(("MatMul", [x, matrix], [tensor]))
        outputs[tensor] = rows(WIDTH)
    if behind:
        carry = "next_carry_0" if before else "carry_0"
        nodes.append(("Mul", [x, "one"], [carry]))
        constants["one"] = np.float32(1)
        outputs[carry] = rows(WIDTH)
    return graph(inputs, outputs, nodes, constants)


def attend(*, weights, mask):
    inputs = {name: ["B", "T" if name == "q" else "S", WIDTH] for name in "qkv"}
    inputs |= {"mask": ["B", "M", "T", "S"]} if mask else {}
    outputs = {"heads": rows(WIDTH)} | ({"weights": ["B", HEADS, "T", "S"]} if weights else {})
    constants = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.5}
    constants |= {"qk_matmul_output_mode": 3} if weights else {}
    names = ["heads", "", "", "weights"] if weights else ["heads"]
    return graph(inputs, outputs, [("Attention", list(inputs), names, constants)])


def head():
    nodes = [("MatMul", ["hidden", "labels"], ["product"]), ("Softmax", ["product"], ["token"])]
    return graph({"hidden": ["N", WIDTH]}, {"token": ["N", len(WORDS)]}, nodes, {"labels": W["labels"]})


def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(WORDS[:3])
    made.post_processor = TemplateProcessing("$A [END]", None, [("[END]", END)])
    return made.to_str().encode()


def write(folder, change=None):
    """Write the model as a version's folder.

    Args:
        folder: to be made.
        change: changes the manifest.
    """
    folder.mkdir(parents=True)
    kinds = {f"attend-{w:d}{m:d}": (w, m) for w in (False, True) for m in (False, True)}
    contents = {name: attend(weights=weights, mask=mask) for name, (weights, mask) in kinds.items()}
    contents |= {"front": front(), "bias": small.bias(), "head": head()}
    segments = {}
    for side, chain in ((Side.SIDE_SOURCE, ENCODER), (Side.SIDE_TARGET, SITES[2:])):
        for before, behind in zip((None, *chain), (*chain, None), strict=True):
            kept = CROSS if side == Side.SIDE_SOURCE and behind is None else ()
            segments[f"segment-{len(segments)}"] = side, segment(before, behind, kept)
    contents |= {name: content for name, (_, content) in segments.items()}

    def file(name, content):
        (folder / name).write_bytes(content)
        return File(name=name, sha256=hashlib.sha256(content).hexdigest())

    entries = {name: file(f"{name}.onnx", content) for name, content in contents.items()}
    manifest = Manifest(format=2, block="transformer", architecture="SmallTranslator", hidden_dim=WIDTH, opset=23)
    for site in SITES:
        layer = manifest.layers.add(name=site, heads=HEADS, key_value_heads=HEADS, head_dim=HEAD, value_head_dim=HEAD)
        layer.MergeFrom(Layer(query_dim=WIDTH, key_dim=WIDTH, value_dim=WIDTH, output_dim=WIDTH, scale=0.5))
        layer.stages.extend(["output", "contributions", *(["hidden"] if site not in CROSS else [])])
        layer.side = Side.SIDE_SOURCE if site in ENCODER else Side.SIDE_CROSS if site in CROSS else Side.SIDE_TARGET
        layer.causal = site in DECODER
        for name, (weights, mask) in kinds.items():
            layer.attend.append(AttendGraph(file=entries[name], weights=weights, mask=mask))
    manifest.layers[0].bias.CopyFrom(entries["bias"])
    for name, (side, _) in segments.items():
        manifest.segments.add(graph=entries[name], side=side)
    text = manifest.text
    text.front.CopyFrom(entries["front"])
    text.memory_front.CopyFrom(entries["front"])
    text.tokenizer.CopyFrom(file("tokenizer.json", tokenizer()))
    text.max_tokens, text.max_memory_tokens, text.allow_unknown, text.start_token = MAX_TARGET, MAX_SOURCE, True, START
    text.end_tokens.append(END)
    manifest.head.CopyFrom(entries["head"])
    manifest.predictors.append(Predictor(name="token", rows=Predictor.ROWS_LAST, vocabulary=True))
    if change is not None:
        change(manifest)
    (folder / "manifest.json").write_text(json_format.MessageToJson(manifest))
    return folder


def source_tokens(text):
    return [*text.split(), "[END]"]


def target_tokens(text):
    return ["[START]", *text.split()]


def embed(tokens):
    """Return what the front gives for tokens, float64 [T, D]."""
    ids = [WORDS.index(token) for token in tokens]
    return (W["words"][ids] + W["positions"][: len(ids)]).astype(np.float64)


def reference(source, target, added=0.0):
    """Compute every stage in float64: a dict for each site.

    Args:
        source: its tokens.
        target: its tokens.
        added: a request's mask, added to the scores of the cross sites, [1 or H, T, S].
    """
    found, x = {}, embed(source)
    reach = small.REACH
    for site in ENCODER:
        distance = np.clip(np.arange(len(x)) - np.arange(len(x))[:, None], -reach, reach) + reach
        bias = small.W["table"].astype(np.float64)[:, distance] if site == ENCODER[0] else 0.0
        found[site] = attention(site, x, x, bias)
        x = found[site]["hidden"] = np.tanh(found[site]["output"] + x)
    encoded, x = x, embed(target)
    hides = np.where(np.tri(len(x), dtype=bool), 0.0, -np.inf)
    for own, cross in zip(DECODER, CROSS, strict=True):
        found[own] = attention(own, x, x, 0.0, hides)
        x = np.tanh(found[own]["output"] + x)
        found[cross] = attention(cross, x, encoded, 0.0, added)
        x = found[own]["hidden"] = np.tanh(found[cross]["output"] + x)
    return found


def attention(site, x, keys, bias, added=0.0):
    """Return the stages of one site, float64."""
    w = {name: W[f"{name} {site}"].astype(np.float64) for name in "qkvob"}
    q, k, v = (
        (rows @ w[name]).reshape(-1, HEADS, HEAD).transpose(1, 0, 2)
        for name, rows in (("q", x), ("k", keys), ("v", keys))
    )
    scores = q @ k.transpose(0, 2, 1) * 0.5 + bias
    masked = scores + added
    largest = masked.max(-1, keepdims=True)
    powers = np.exp(masked - np.where(np.isfinite(largest), largest, 0))
    weights = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)
    heads = weights @ v
    parts = np.einsum("htv,hvd->htd", heads, w["o"].reshape(HEADS, HEAD, WIDTH))
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1)
    stages = {"q": q, "k": k, "v": v, "scores": scores, "weights": weights, "entropy": entropy, "heads": heads}
    sums = powers.sum(-1)
    stages["lse"] = np.where(sums > 0, np.log(np.maximum(sums, 1e-300)) + largest[..., 0], -1e30)
    return stages | {"contributions": parts, "output": parts.sum(0) + w["b"]}


def next_token(hidden):
    """Return the probabilities of the next token, [labels], of the last row of the last hidden state."""
    logits = hidden[-1] @ W["labels"]
    return np.exp(logits) / np.exp(logits).sum()
