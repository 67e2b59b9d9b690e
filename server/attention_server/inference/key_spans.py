"""Named ranges of keys: their places in a sequence, and the sums of weights over them."""

import numpy as np
from numpy.typing import NDArray

from attention_server.domain.messages import KeySpan, Sequence
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference.layer import LoadedLayer
from attention_server.inference.planner import OutputPlan
from attention_server.inference.preprocess import PreparedInput, keys_are_apart

Ranges = NDArray[np.intp]  # begin and end of each among the keys, [spans, 2]


def check_spans(output: OutputPlan, layer: LoadedLayer, prepared: PreparedInput, sequence: Sequence) -> None:
    """Check the spans of an output against a sequence.

    Args:
        output: its plan.
        layer: that the output is of.
        prepared: the sequence.
        sequence: as sent.

    Raises:
        InvalidRequest: a span ends behind the keys or their text, has no token, or counts characters where the keys are
            of no text of this sequence.
    """
    ranges = key_ranges(output, layer, prepared)
    if ranges is None:
        return
    field, keys = join_path(output.field, "spans"), layer.lengths(prepared)[1]
    text = sequence.memory_text if keys_are_apart(prepared, layer.axes) else sequence.text
    for span, (begin, end) in zip(output.spec.spans, ranges.tolist(), strict=True):
        name = repr(span.name[:64])
        if span.characters and sequence.text_pair is not None:
            raise InvalidRequest(f"{name} counts characters; of a pair of texts count tokens", field=field)
        if span.characters and span.end > len(text or ""):
            reason = f"{name} ends at character {span.end}; the text has {len(text or '')}"
            raise InvalidRequest(reason, field=field)
        if begin == end:
            raise InvalidRequest(f"{name} has no token: those of its characters are not read", field=field)
        if end > keys:
            raise InvalidRequest(f"{name} ends at {end}; there are {keys} keys", field=field)


def key_ranges(output: OutputPlan, layer: LoadedLayer, prepared: PreparedInput) -> Ranges | None:
    """Return the keys of each span of an output, [spans, 2]; None for an output without spans.

    Raises:
        InvalidRequest: a span counts characters where the keys are of no text of this sequence.
    """
    spans = output.spec.spans
    if not spans:
        return None
    ranges = np.array([(span.begin, span.end) for span in spans], np.intp)
    for place, span in enumerate(spans):
        if span.characters:
            ranges[place] = _of_characters(span, layer, prepared, output.field)
    return ranges


def _of_characters(span: KeySpan, layer: LoadedLayer, prepared: PreparedInput, field: str) -> tuple[int, int]:
    """Return the keys of the tokens that have one of a span's characters; an empty range for none."""
    apart = keys_are_apart(prepared, layer.axes)
    tokens = prepared.memory_tokens if apart else prepared.tokens
    if tokens is None or not tokens.spans:
        words = "of a memory" if apart and prepared.memory else "of no text"
        raise InvalidRequest(
            f"{span.name[:64]!r} counts characters, but the keys are {words} in this request; count tokens",
            field=join_path(field, "spans"),
        )
    first = 0 if apart else layer.first(prepared)
    starts, ends = np.array(tokens.spans).T
    touched = np.flatnonzero((starts < span.end) & (ends > span.begin) & (starts < ends))
    return (first + int(touched[0]), first + int(touched[-1]) + 1) if len(touched) else (0, 0)


def within(ranges: Ranges, keys: slice) -> Ranges:
    """Return ranges as places among some of the keys, cut to these."""
    cut: Ranges = np.clip(ranges, keys.start, keys.stop) - keys.start
    return cut


def sums_over(weights: NDArray[np.float32], ranges: Ranges) -> NDArray[np.float32]:
    """Return the sum of each row over each range, [H, r, keys] -> [H, r, spans]; in float64 on the way.

    Each weight is read once, however much the ranges overlap: the edges of all cut the keys into pieces, and a range is
    a difference of two totals of pieces. A range of zeros gives 0.
    """
    edges = np.unique(ranges)
    totals = np.zeros((*weights.shape[:-1], len(edges)))
    if len(edges) > 1:
        for own, of_head in zip(totals, weights, strict=True):  # each is turned into float64 by itself
            pieces = np.add.reduceat(of_head[..., : edges[-1]], edges[:-1], axis=-1, dtype=np.float64)
            np.cumsum(pieces, axis=-1, out=own[..., 1:])
    begin, end = np.searchsorted(edges, ranges).T
    return (totals[..., end] - totals[..., begin]).astype(np.float32)
