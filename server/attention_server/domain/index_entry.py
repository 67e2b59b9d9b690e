"""An entry of the repository's index."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One version of the repository and its state.

    Attributes:
        name: name of the model.
        version: number of the version.
        state: READY answers requests; LOADING is verified and warmed; UNLOADING finishes the requests that hold it;
            UNAVAILABLE is in the repository and is not served.
        reason: reason why the version is not ready; for READY empty, or that its graphs are not in
            memory, or why it is served without its folder.
    """

    name: str
    version: int
    state: Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
    reason: str
