"""The options by which `attend` and `plot` hide keys: one language for both."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from attention_client.cli.choice import read_numbers
from attention_client.cli.options import Causal

MATRICES = ("allowed", "bias")

CausalMask = Annotated[Causal, typer.Option(help="Hide the future, lined up at first or last position.")]
Window = Annotated[
    str,
    typer.Option(
        metavar="LEFT,RIGHT",
        help="The farthest keys before and behind a query; -1 is unbounded, as in --window=-1,0.",
        show_default="unbounded",
    ),
]
MaskJson = Annotated[
    str,
    typer.Option(
        metavar="JSON|FILE",
        help="A matrix of true (may attend) and false, or of numbers to add to the scores, one for all heads or one "
        'each; or an object of both, {"allowed": .., "bias": ..}. JSON, or a file of it.',
    ),
]
MaskLayers = Annotated[
    list[str] | None,
    typer.Option("--mask-layer", help="A layer that is masked; may be repeated.", show_default="all"),
]


def read_mask(causal: Causal, window: str, mask_json: str, layers: list[str] | None) -> dict[str, Any]:
    """Return the mask's arguments of `AttentionClient.attend`.

    Raises:
        typer.BadParameter: --window is not two numbers, or --mask-json has no matrix.
    """
    given: dict[str, Any] = {"causal": causal.value, "mask_layers": layers or (), **_read_matrices(mask_json)}
    if window:
        numbers = read_numbers(window, "--window", "2,0")
        if len(numbers) != 2:
            raise typer.BadParameter(f"{window!r} is not LEFT,RIGHT, such as 2,0", param_hint="--window")
        given["window"] = tuple(numbers)
    if layers and given.keys() == {"causal", "mask_layers"} and causal is Causal.NONE:
        raise typer.BadParameter(
            "there is no mask to limit; give --causal, --window or --mask-json", param_hint="--mask-layer"
        )
    return given


def _read_matrices(text: str) -> dict[str, Any]:
    """Return `allowed` and `bias`, by name.

    Raises:
        typer.BadParameter: the text is neither a file nor JSON of such matrices.
    """
    if not text:
        return {}
    try:
        document = json.loads(text if text.lstrip()[:1] in {"[", "{"} else Path(text).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise typer.BadParameter(f"neither JSON nor a file of it: {error}", param_hint="--mask-json") from error
    if isinstance(document, list):
        matrix = _matrix(document)
        return {"allowed" if matrix.dtype == bool else "bias": matrix}
    if not isinstance(document, dict) or not document or not document.keys() <= set(MATRICES):
        raise typer.BadParameter('must be a matrix, or {"allowed": .., "bias": ..}', param_hint="--mask-json")
    return {name: _matrix(value) for name, value in document.items()}


def _matrix(value: object) -> np.ndarray[Any, Any]:
    try:
        matrix = np.asarray(value)
    except ValueError as error:  # rows of unequal lengths
        raise typer.BadParameter("rows of a matrix must have one length", param_hint="--mask-json") from error
    if matrix.dtype.kind not in "bif":
        raise typer.BadParameter("must hold true and false, or numbers alone", param_hint="--mask-json")
    return matrix if matrix.dtype == bool else matrix.astype(np.float32)
