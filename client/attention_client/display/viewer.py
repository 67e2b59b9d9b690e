"""Attention weights as an interactive page: one HTML file, which loads nothing.

The server's page exports the same viewer; `server/web` has its source, and `make web` builds it.
"""

import html
import json
import math
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from attention_client.display.document import prediction_document, shortest
from attention_client.display.picture import axis_names, focused_row
from attention_client.errors import NotRequested
from attention_client.result import Alignment, Array, AttendResult, TopK

_MAX_WHOLE = 64  # positions; of longer sequences only the largest weights of each row are written
_TOP_KEYS = 16
_PLACEHOLDER = '<script type="application/json" id="picture">null</script>'
_FORMAT = "attention-picture/1"
_PANELS_IN_A_ROW = 3
_THUMBNAIL = 120  # pixels of a head in the atlas of several layers


def page(result: AttendResult, title: str = "", row: int | None = None) -> str:
    """Return an HTML document that shows a result's weights: the heads of each layer, as matrices and as lines.

    Args:
        result: has weights.
        title: of the document; the tokens when empty.
        row: the query position whose lines it begins with; None for the one that predictions were read from.

    Raises:
        NotRequested: the weights were not asked for.
    """
    # "<" would let a token end the script element.
    document = picture_document(result, title) | ({} if row is None else {"focus": row, "style": "lines"})
    content = json.dumps(document, ensure_ascii=False).replace("<", "\\u003c")
    return _viewer().replace(_PLACEHOLDER, _PLACEHOLDER.replace("null", content))


def frame(result: AttendResult) -> str:
    """Return `page` as one sandboxed element for a notebook.

    Raises:
        NotRequested: the weights were not asked for.
    """
    layers = layer_weights(result)
    heads, queries, _ = next(iter(layers.values())).shape
    rows = math.ceil((heads + 1) / _PANELS_IN_A_ROW)
    atlas = len(layers) * _THUMBNAIL if len(layers) > 1 else 0
    height = 430 + atlas + rows * (min(queries, 12) * 30 + 90)
    document = html.escape(page(result), quote=True)
    return (
        f'<iframe srcdoc="{document}" sandbox="allow-scripts" title="Attention weights" width="100%" height="{height}" '
        'style="border:0"></iframe>'
    )


def picture_document(result: AttendResult, title: str = "") -> dict[str, Any]:
    """Return a result's weights as JSON values, in the form that the page exports and opens.

    Raises:
        NotRequested: the weights were not asked for.
    """
    weights = layer_weights(result)
    _, queries, keys = next(iter(weights.values())).shape
    query_tokens, key_tokens = _axes(result)
    return {
        "format": _FORMAT,
        "title": title or " ".join(result.tokens),
        "model": result.model,
        "version": result.version,
        "queries": axis_names(query_tokens, queries),
        "keys": axis_names(key_tokens, keys),
        "to_itself": key_tokens == query_tokens and queries == keys,
        "focus": focused_row(result, queries),
        "predictions": [prediction_document(each) for each in result.predictions],
        "layers": [{"name": layer, **_layer(value)} for layer, value in weights.items()],
    }


def layer_weights(result: AttendResult) -> dict[str, Array]:
    """Return the weights of a result by layer, without those of a `TopK`.

    Raises:
        NotRequested: the result has none.
    """
    found = {
        name.partition("@")[2] or "weights": value
        for name, value in result.outputs.items()
        if name.partition("@")[0] == "weights" and not isinstance(value, TopK | Alignment) and value.ndim > 2
    }
    if not found:
        raise NotRequested("the result has no whole 'weights' to draw: add them to `outputs` of the request")
    if len({value.shape[1:] for value in found.values()}) > 1:
        raise NotRequested("the result has weights of several shapes: draw those of one kind of layer at a time")
    return found


def _axes(result: AttendResult) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the rows and of the keys of a result's weights.

    Raises:
        NotRequested: these differ from layer to layer.
    """
    first, *others = {result.axes(name) for name in result.outputs if name.partition("@")[0] == "weights"}
    if others:
        raise NotRequested("the result has weights of sites of several kinds: draw those of one kind at a time")
    return first


def _layer(weights: Array) -> dict[str, Any]:
    if max(weights.shape[1:]) <= _MAX_WHOLE:
        return {"weights": shortest(weights)}
    indices = np.argsort(-weights, axis=-1, kind="stable")[..., :_TOP_KEYS]
    values = np.take_along_axis(weights, indices, -1)
    return {"largest": {"indices": indices.tolist(), "values": shortest(values)}}


@cache
def _viewer() -> str:
    return files(__package__).joinpath("viewer.html").read_text("utf-8")
