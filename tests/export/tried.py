"""Imports every tiny checkpoint of the tests, and writes the results into docs/models.md: `make tried`."""

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from attention_export.importing import ImportFailure
from attention_export.importing.transformer import import_transformer
from attention_export.manifest import read_manifest
from attention_export.verify import Mismatch
from attention_proto.attention.v1.attention_pb2 import Manifest
from transformers import PreTrainedModel

from tests.export.tiny_checkpoints import (
    DECODERS,
    ENCODER_DECODERS,
    KINDS,
    REFUSED,
    random_model,
    tiny_model,
    write_checkpoint,
)

PAGE = Path(__file__).parents[2] / "docs/models.md"
BEGIN, END = "<!-- tried: begin, written by `make tried` -->", "<!-- tried: end -->"


def attempt(model: PreTrainedModel, folder: Path) -> Manifest | str:
    """Import a checkpoint; return the manifest, or the words of the refusal."""
    checkpoint = write_checkpoint(folder / "checkpoint", model)
    try:
        return read_manifest(import_transformer(checkpoint, folder / "models", "tried", 1))
    except (ImportFailure, Mismatch) as error:
        return " ".join(str(error).split())


def features(manifest: Manifest) -> str:
    """Return the distinguishing features of a model's sites."""
    layers = manifest.layers
    found: dict[str, Any] = {
        "two chains": any(layer.side for layer in layers),
        "causal": any(layer.causal for layer in layers),
        "windows": any(layer.window for layer in layers),
        "bias": any(layer.HasField("bias") for layer in layers),
        "key-value heads": any(layer.key_value_heads != layer.heads for layer in layers),
        "softcap": any(layer.softcap for layer in layers),
        "sinks": any(layer.sinks for layer in layers),
        "shared segments": len({each.graph.name for each in manifest.segments}) < len(manifest.segments),
        "rows mixed": any(each.rows_dependent for each in manifest.segments),
        f"positions from {manifest.text.position_base}": manifest.text.position_base > 0,
    }
    return ", ".join(name for name, there in found.items() if there)


def imported_row(kind: str, outcome: Manifest | str) -> str:
    """Return a line of the table of imported kinds."""
    if isinstance(outcome, str):
        return f"| {kind} | | refused: {outcome} | | |"
    errors = outcome.parity.max_abs_error
    figures = f"{outcome.parity.cases} | {errors['weights']:.1e} | {errors['hidden']:.1e}"
    return f"| {kind} | {outcome.architecture} | {features(outcome)} | {figures} |"


def table() -> list[str]:
    """Import every kind; return the lines of both tables."""
    lines = [
        f"Tiny random models of transformers {transformers.__version__}, drawn so wide that the median row's largest",
        "weight is above .5, imported by `make tried`; the largest errors against eager attention in float64:",
        "",
        "| type | class | sites | cases | weights | hidden |",
        "|---|---|---|---|---|---|",
    ]
    lines += [imported_row(kind, _one(kind, tiny_model(kind))) for kind in KINDS]
    lines += [imported_row(kind, _one(kind, tiny_model(kind, task="ForCausalLM"))) for kind in DECODERS]
    lines += [imported_row(kind, _one(kind, tiny_model(kind))) for kind in ENCODER_DECODERS]
    lines += ["", "Refused:", "", "| type | words |", "|---|---|"]
    for kind, (fields, _) in REFUSED.items():
        outcome = _one(kind, random_model(kind, **fields))
        lines.append(f"| {kind} | {outcome if isinstance(outcome, str) else 'imported'} |")
    return lines


def _one(kind: str, model: PreTrainedModel) -> Manifest | str:
    with TemporaryDirectory() as folder:
        outcome = attempt(model, Path(folder))
    told = outcome if isinstance(outcome, str) else "imported"
    print(f"{kind}: {told}", file=sys.stderr, flush=True)
    return outcome.replace(f"{folder}/", "") if isinstance(outcome, str) else outcome


def main() -> None:
    """Replace the tables in docs/models.md."""
    warnings.simplefilter("ignore")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(table()) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
