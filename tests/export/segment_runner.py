"""Runs a model's parts by the names of tensors, its sites by NumPy."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
from attention_export.importing.transformer.parts import SiteSpec, TransformerParts
from attention_proto.folder import tensor_name

Array = np.ndarray[Any, Any]


@dataclass
class Run:
    """What the parts gave: hidden states (the first one is `query`), weights and `output` of sites, the environment."""

    hidden: list[Array] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    output: list[Array | None] = field(default_factory=list)
    environment: dict[str, Array] = field(default_factory=dict)


def session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def step(graph: bytes, environment: dict[str, Array]) -> set[str]:
    """Run a graph on the environment, and write its results into it."""
    opened = session(graph)
    names = [tensor_name(each.name) for each in opened.get_outputs()]
    results = opened.run(None, {each.name: environment[each.name] for each in opened.get_inputs()})
    environment.update(zip(names, results, strict=True))
    return set(names)


def run_parts(model: TransformerParts, tokens: Array, token_types: Array | None = None) -> Run:
    """Run front, segments and sites of a model of one sequence on tokens [B, T]."""
    positions = np.broadcast_to(model.position_base + np.arange(tokens.shape[1]), tokens.shape)
    (parts,) = model.chains
    run = Run()
    run.environment |= {
        "tokens": tokens,
        "position_ids": positions,
        "token_type_ids": np.zeros_like(tokens) if token_types is None else token_types,
    }
    step(parts.front(), run.environment)
    run.hidden.append(run.environment["query"])
    for index, segment in enumerate(parts.segments):
        given = step(segment(), run.environment)
        if "hidden" in given:
            run.hidden.append(run.environment["hidden"])
        if index:
            run.output.append(run.environment["output"] if "output" in given else None)
        if index < len(parts.sites):
            weights, run.environment["heads"] = attend(parts.sites[index], run.environment, positions[0])
            run.weights.append(weights)
    return run


def attend(site: SiteSpec, environment: dict[str, Array], positions: Array) -> tuple[Array, Array]:
    """Compute weights [B, H, T, S] and heads [B, T, H*Dv]."""
    groups = site.heads // site.key_value_heads
    q = _split(environment["q"], site.heads)
    k, v = (np.repeat(_split(environment[name], site.key_value_heads), groups, axis=1) for name in ("k", "v"))
    scores = q @ k.transpose(0, 1, 3, 2) * np.float32(site.scale)
    if site.softcap:
        scores = np.tanh(scores / site.softcap) * site.softcap
    if site.bias is not None:
        graph = session(site.bias)
        feeds = environment | {"query_positions": positions, "key_positions": positions}
        scores = scores + graph.run(None, {each.name: feeds[each.name] for each in graph.get_inputs()})[0]
    distance = positions[:, None] - positions[None, :]
    hidden = (distance < 0) if site.causal else np.zeros(distance.shape, np.bool_)
    if site.window:
        hidden |= np.abs(distance) >= site.window
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    heads = (weights @ v).transpose(0, 2, 1, 3)
    return weights, heads.reshape(*heads.shape[:2], -1).astype(np.float32)


def _split(packed: Array, heads: int) -> Array:
    return packed.reshape(*packed.shape[:2], heads, -1).transpose(0, 2, 1, 3)
