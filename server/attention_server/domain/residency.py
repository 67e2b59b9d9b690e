"""The versions whose graphs are in memory, as metrics tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class VersionResidency:
    """One version.

    Attributes:
        bytes: of the tensors of its graphs in memory; 0 while it is evicted.
        evictions: times that its graphs were closed to make room.
        reloads: times that its graphs were opened again for a request.
        failed_reloads: times that this failed.
    """

    bytes: int = 0
    evictions: int = 0
    reloads: int = 0
    failed_reloads: int = 0


@dataclass(frozen=True, slots=True)
class ResidencyState:
    """The state of one moment.

    Attributes:
        budget: bytes that the graphs of versions without requests may have together; None for no limit.
        versions: by name and version.
    """

    budget: int | None = None
    versions: Mapping[tuple[str, int], VersionResidency] = field(default_factory=dict)
