"""The pooling that makes an embedding of a checkpoint's hidden states, as sentence-transformers writes it down."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from attention_export.importing import ImportFailure

POOLS = ("mean", "first", "last")
MODES = {  # names of sentence-transformers; each was a flag of its own, and is a word in later versions
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "first",
    "mean": "mean",
    "lasttoken": "last",
}
Content = TypeVar("Content", dict[str, Any], list[Any])
MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """How the rows of `hidden` become one embedding.

    Attributes:
        pool: one of `POOLS`; empty where the files do not say it, or say another one.
        normalize: whether the embedding is divided by its length.
        notes: parts that were left out, in sentences.
    """

    pool: str = ""
    normalize: bool = False
    notes: tuple[str, ...] = ()


def read_pooling(folder: Path, chosen: str = "") -> Pooling:
    """Read `modules.json` and the configuration of the pooling that it names.

    Args:
        folder: of the checkpoint.
        chosen: one of `POOLS`, in place of the pooling that the files name; empty for the latter.

    Raises:
        ImportFailure: a file cannot be read, or `chosen` is no pooling.
    """
    if chosen not in ("", *POOLS):
        raise ImportFailure(f"--pool {chosen!r} is none of {', '.join(POOLS)}")
    found = _pooling(folder, _read(folder / "modules.json", []))
    return Pooling(chosen, found.normalize) if chosen else found


def _pooling(folder: Path, modules: list[Any]) -> Pooling:
    if not all(isinstance(module, dict) for module in modules):
        raise ImportFailure("modules.json must hold a list of objects, one for each module")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if "Pooling" not in kinds:
        return Pooling()
    if further := [kind for kind in kinds if kind not in MODULES]:
        return Pooling(notes=(f"modules.json has {', '.join(further)} behind the model: its embedding is left out",))
    path = folder / str(modules[kinds.index("Pooling")].get("path", ""))
    modes = _modes(_read(path / "config.json", {}))
    normalize = "Normalize" in kinds
    if len(modes) == 1 and modes[0] in MODES:
        return Pooling(MODES[modes[0]], normalize)
    said = f"{path.name}/config.json pools by {' and '.join(modes) or 'nothing'}"
    note = f"{said}; one of {', '.join(POOLS)} is served, so that the pooling is left out: give it as --pool"
    return Pooling(normalize=normalize, notes=(note,))


def _modes(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [str(mode) for mode in named] if isinstance(named, list) else [str(named)]
    return [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]


def _read(path: Path, empty: Content) -> Content:
    """Return a file's JSON; `empty` where there is no file.

    Raises:
        ImportFailure: it cannot be read, or is of another type than `empty`.
    """
    if not path.exists():
        return empty
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ImportFailure(f"{path} cannot be read: {error}") from error
    if not isinstance(content, type(empty)):
        raise ImportFailure(f"{path} must hold a {type(empty).__name__}, not a {type(content).__name__}")
    return content
