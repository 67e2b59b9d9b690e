"""Which versions of a repository are loaded, and when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Mode = Literal["none", "poll", "explicit"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions are loaded, and when.

    Attributes:
        mode: `none` loads the whole folder at the start and never again; `poll` follows the folder; `explicit` loads
            and unloads on request.
        at_start: names of models that mode `explicit` loads at the start; `*` for all.
        default_versions: the pinned default version by model; without one it is the latest.
        max_version_bytes: bytes that the files of one version may have.
        grace: seconds that an unload waits for requests that hold a version.
        strict: whether one version that cannot be served ends the start.
        model_budget: bytes that the tensors of graphs in memory may have; see `residency.Residency`. None for no limit.
        trial_records: the folder in which results of trials are kept; None for none.
    """

    mode: Mode = "none"
    at_start: tuple[str, ...] = ()
    default_versions: Mapping[str, int] = field(default_factory=dict)
    max_version_bytes: int = 2**32
    grace: float = 30.0
    strict: bool = False
    model_budget: int | None = None
    trial_records: Path | None = None
