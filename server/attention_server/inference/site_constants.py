"""Whether a site's graphs compute with the constants that its manifest tells: scale, softcap and sinks.

The stage `scores` is computed from the manifest, the stage `weights` by a graph. With another scale in the manifest
both would be plausible, and `scores` wrong.
"""

import numpy as np
from numpy.typing import NDArray

from attention_server.inference.engine.protocol import Run
from attention_server.inference.head_weights import HeadWeights
from attention_server.inference.layer import LoadedLayer, Tensors
from attention_server.inference.masks import Vectors, site_mask
from attention_server.inference.scores import sinks_of

Weights = NDArray[np.float64]
ROWS = 7
ANY_WIDTH = 8  # of a head, where a block takes any width
LEAST_SCORE = 3.0  # of the last row, the loudest; a softcap is seen in scores as large as it


class WrongConstantError(ValueError):
    """A graph's weights are not the softmax of the scores that the manifest describes."""


def check_constants(layer: LoadedLayer, tolerance: float) -> None:
    """Compare weights of a site with the softmax of its scores.

    Args:
        layer: the site.
        tolerance: of a weight, for scores up to 1; in proportion for greater ones, which float32 rounds more.

    Raises:
        WrongConstantError: a weight differs by more than the tolerance, or is NaN.
    """
    about = layer.about
    found = layer.stages(_draw(layer), None, frozenset(("scores", "weights")), frozenset(), Run())
    scores = found["scores"].astype(np.float64)
    allowed = tolerance * np.maximum(1, np.abs(scores).max(-1, keepdims=True))
    own = site_mask(*scores.shape[-2:], causal=about.causal, window=about.window)
    expected = _softmax(scores if own is None else scores + own, sinks_of(about))
    error = float((np.abs(found["weights"] - expected) / allowed).max()) * tolerance
    if not error <= tolerance:  # `not <=` also catches NaN
        raise WrongConstantError(
            f"layer {about.name}: its graphs give other weights than the manifest's scale {about.scale:g}, softcap "
            f"{about.softcap:g}" + (" and sinks" if about.sinks else "") + f": they differ by {error:.2g}"
        )


def check_flash(layer: LoadedLayer, tolerance: float) -> None:
    """Compare what a site's graphs for long sequences give with its graph with scores: heads, and weights by heads.

    Args:
        layer: the site.
        tolerance: as of `check_constants`, times the largest value.

    Raises:
        WrongConstantError: they differ.
    """
    if layer.flash is None:
        return
    tensors, rows = _draw(layer), slice(0, ROWS)
    plain, flash = (
        layer.block_stages(tensors, None, np.arange(ROWS), rows, frozenset(wanted), frozenset(), Run(), flash=each)
        for each, wanted in ((False, ("heads", "scores", "weights")), (True, ("heads",)))
    )
    allowed = tolerance * max(1, np.abs(plain["scores"]).max()) * max(1, np.abs(tensors["v"]).max())
    error = float(np.abs(flash["heads"] - plain["heads"]).max())
    if not error <= allowed:
        raise WrongConstantError(f"layer {layer.about.name}: its heads differ by {error:.2g} where no scores are made")
    feeds = {name: tensors[name] for name in (layer.query, "k", "v")}
    weights = np.stack(list(HeadWeights.of(layer, feeds["k"]).of_rows(feeds, Run(), "")))
    error = float(np.abs(weights - plain["weights"][0]).max())
    if not error <= allowed:
        raise WrongConstantError(f"layer {layer.about.name}: its weights differ by {error:.2g} where no heads are made")


def _softmax(scores: Weights, sinks: Vectors | None) -> Weights:
    """Return weights of scores [B, H, T, S], without the column of a sink."""
    if sinks is not None:
        column = np.broadcast_to(sinks.reshape(1, -1, 1, 1), (*scores.shape[:-1], 1))
        scores = np.concatenate([scores, column], -1)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights: Weights = powers / powers.sum(-1, keepdims=True)
    return weights if sinks is None else weights[..., :-1]


def _draw(layer: LoadedLayer) -> Tensors:
    """Draw q (or the query), k and v of one sequence, with rows of small scores and of such as a softcap bounds."""
    about, rng = layer.about, np.random.default_rng(0)
    width = about.head_dim or (about.query_dim or ANY_WIDTH * about.heads) // about.heads
    value = about.value_head_dim or about.value_dim // about.key_value_heads or width
    widths = {
        "query": about.query_dim or width * about.heads,
        "q": width * about.heads,
        "k": width * about.key_value_heads,
        "v": value * about.key_value_heads,
    }
    tensors = {name: rng.standard_normal((1, ROWS, size), np.float32) for name, size in widths.items()}
    loud = np.linspace(1, max(LEAST_SCORE, about.softcap), ROWS, dtype=np.float32)[:, None]
    tensors["q"] *= loud / ((about.scale or width**-0.5) * width**0.5)
    tensors["query"] *= loud
    return tensors
