"""The head of a task: probabilities of rows of `hidden`, and the rows that it reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from attention_proto.attention.v1.attention_pb2 import Predictor
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from attention_export.graphs import strip
from attention_export.importing import ImportFailure
from attention_export.importing.transformer.parts import TransformerParts
from attention_export.importing.transformer.sides import arguments, backbone, embeddings
from attention_export.importing.transformer.source import Source, quiet
from attention_export.importing.transformer.values import ValuesOnUse, without_values

NEXT_TOKEN = ("causal-lm", "seq2seq-lm")  # tasks that predict the token behind a row
VOCABULARIES = ("masked-lm", *NEXT_TOKEN)  # tasks with a vocabulary for labels
LENGTHS = (2, 5, 17)  # of the sequences that tell which rows a head reads
TOLERANCE = 1e-4  # of the largest logit

Array = NDArray[Any]


@dataclass(frozen=True)
class Head:
    """The head of a task.

    Attributes:
        graph: ONNX, hidden [N, D] -> the probabilities of each predictor, [N, labels] [, logits [N, logits_dim]].
        predictors: of the names of the graph's results.
        logits_dim: the number of labels where each row has logits; else 0.
    """

    graph: bytes
    predictors: tuple[Predictor, ...]
    logits_dim: int = 0


def make_head(source: Source, parts: TransformerParts) -> tuple[Head | None, tuple[str, ...]]:
    """Return the head that a server can run; None where there is none, or where it is left out.

    Returns:
        The head, and notes on a head that was left out, with the reason.

    Raises:
        ImportFailure: the labels of the config are not those of the head.
    """
    if parts.head is None:
        return None, ()
    left_out = f"the head of {source.architecture} is left out"
    if reason := _kind_left_out(source):
        return None, (f"{left_out}: {reason}",)
    logits = parts.head()
    rows = _find_rows(source, logits, parts.max_tokens or LENGTHS[-1])
    if rows is None:
        reason = (
            "its logits follow neither from each row of the last hidden state, nor from the first or the last row, nor "
            "from the mean of the rows"
        )
        return None, (f"{left_out}: {reason}",)
    if source.task in NEXT_TOKEN and rows == Predictor.ROWS_ALL:
        rows = Predictor.ROWS_LAST  # the next token of the text; of chosen rows, that of each prefix
    vocabulary = source.task in VOCABULARIES
    predictor = Predictor(name="token" if vocabulary else "label", rows=rows, vocabulary=vocabulary)
    has_logits = vocabulary or rows == Predictor.ROWS_ALL
    graph, width = _with_softmax(logits, predictor.name, keeps_logits=has_logits)
    if not predictor.vocabulary:
        predictor.labels.extend(_labels(source.config, width))
    return Head(graph, (predictor,), width if has_logits else 0), ()


def _kind_left_out(source: Source) -> str:
    """Return why a kind of head is not served; empty for one that is."""
    if source.task in VOCABULARIES:
        return ""
    kind = getattr(source.config, "problem_type", None)
    if kind == "multi_label_classification":
        return "problem_type says multi_label_classification, and predictions are of labels that exclude each other"
    if kind == "regression" or (kind is None and len(source.config.id2label or {}) == 1):
        return "it is a regression, and predictions are of labels"
    return ""


def _labels(config: PretrainedConfig, width: int) -> list[str]:
    names: dict[int, str] = getattr(config, "id2label", None) or {}
    if sorted(names) != list(range(width)):
        raise ImportFailure(f"config.json: id2label names {sorted(names)}; the head has {width} labels, from 0")
    labels = [str(names[index]) for index in range(width)]
    if len(set(labels)) < width:
        raise ImportFailure(f"config.json: id2label gives two labels one name: {', '.join(labels)}")
    return labels


def _with_softmax(content: bytes, name: str, *, keeps_logits: bool) -> tuple[bytes, int]:
    """Return the graph with probabilities `name`, beside logits or in place of them, and the number of labels."""
    model = onnx.load_from_string(content)
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], [name], name="probabilities", axis=-1))
    if keeps_logits:
        model.graph.output.add().CopyFrom(output)
    output.name = name
    strip(model)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True), output.type.tensor_type.shape.dim[-1].dim_value


def _find_rows(source: Source, head: bytes, longest: int) -> "Predictor.Rows.ValueType | None":
    """Return the rows of the last hidden state that give the source's logits; None where no choice does."""
    model = without_values(source.skeleton, torch.float32)
    session = ort.InferenceSession(head, providers=["CPUExecutionProvider"])
    (taken,) = (each.name for each in session.get_inputs())
    rng = np.random.default_rng(0)
    errors: dict[Predictor.Rows.ValueType, float] = {}
    for length in (min(length, longest) for length in LENGTHS):
        with ValuesOnUse(model, source.value_to_run):
            hidden, logits = _run(model, rng, length)
        for rows, read in _choices(hidden, whole=logits.ndim == 1).items():
            (found,) = session.run(None, {taken: read})
            error = float(np.abs(found.reshape(-1, logits.shape[-1]) - logits).max() / np.abs(logits).max())
            errors[rows] = max(errors.get(rows, 0.0), error)
    best = min(errors, key=lambda rows: errors[rows])
    return best if errors[best] <= TOLERANCE else None


def _choices(hidden: Array, *, whole: bool) -> "dict[Predictor.Rows.ValueType, Array]":
    """Return rows of `hidden` [T, D] that a head may read, [N, D]: of the whole sequence one, else each."""
    if not whole:
        return {Predictor.ROWS_ALL: hidden}
    return {
        Predictor.ROWS_FIRST: hidden[:1],
        Predictor.ROWS_LAST: hidden[-1:],
        Predictor.ROWS_MEAN: hidden.mean(0, keepdims=True),
    }


def _run(model: Any, rng: np.random.Generator, length: int) -> tuple[Array, Array]:
    """Return the last hidden state [T, D] and the logits [labels] or [T, labels] of random tokens."""
    hidden: list[Tensor] = []
    hook = backbone(model).register_forward_hook(lambda _, __, result: hidden.append(result[0]))
    padding = getattr(model.config, "pad_token_id", None) or 0
    tokens = {
        side: torch.from_numpy(rng.choice(np.setdiff1d(np.arange(len(each.weight)), [padding]), (1, length)))
        for side, each in embeddings(model).items()
    }
    try:
        with torch.no_grad(), quiet():
            logits = model(**arguments(tokens)).logits
    finally:
        hook.remove()
    return hidden[-1][0].numpy(), logits[0].numpy()
