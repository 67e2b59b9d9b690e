"""The results of a run, in one JSON file that is replaced atomically after every measurement."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Measurement = dict[str, float]


@dataclass
class Results:
    """The figures of one run, with command, machine and versions.

    Attributes:
        about: the command, date and machine; the seconds and rounds, and the minutes of the run.
        versions: environment -> package -> version.
        measured: case -> contender -> round -> measurement.
        start: the seconds to ready and MiB resident of each start.
        failures: peer, or case and contender -> the reason why no figure exists.
    """

    about: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    measured: dict[str, dict[str, dict[str, Measurement]]] = field(default_factory=dict)
    start: list[tuple[float, float]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a file of `save`."""
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Write the results atomically, so that a killed run leaves its last state."""
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        beside.replace(path)

    def add(self, case: str, contender: str, number: int, measurement: Measurement) -> None:
        """Add the measurement of one round."""
        rounded = {name: float(f"{value:.5g}") for name, value in measurement.items()}
        self.measured.setdefault(case, {}).setdefault(contender, {})[str(number)] = rounded

    def has(self, case: str, contender: str, number: int) -> bool:
        """Return whether a round has a measurement."""
        return str(number) in self.measured.get(case, {}).get(contender, {})

    def rounds(self, case: str, contender: str, what: str = "rate") -> dict[str, float]:
        """Return one figure of each round."""
        return {number: each[what] for number, each in self.measured.get(case, {}).get(contender, {}).items()}

    def median(self, case: str, contender: str, what: str = "rate") -> float | None:
        """Return the median over rounds; None without rounds."""
        rounds = self.rounds(case, contender, what)
        return median(rounds.values()) if rounds else None

    def ratio(self, case: str, upper: str, lower: str, what: str = "rate") -> float | None:
        """Return the median of two contenders' ratios within rounds, which a drift of the machine does not affect."""
        above, below = self.rounds(case, upper, what), self.rounds(case, lower, what)
        both = [above[number] / below[number] for number in above.keys() & below.keys()]
        return median(both) if both else None

    def best(self, case: str, *contenders: str) -> str:
        """Return the contender with the highest median rate."""
        return max(contenders, key=lambda name: self.median(case, name) or 0.0)

    def spread(self) -> list[float]:
        """Return the range of rates over rounds, relative to the median, for each case and contender."""
        rates = [
            [each["rate"] for each in rounds.values()] for named in self.measured.values() for rounds in named.values()
        ]
        return [(max(each) - min(each)) / median(each) for each in rates if len(each) > 1]
