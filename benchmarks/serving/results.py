"""What was measured, kept in one JSON file that is whole after every measurement."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Measurement = dict[str, float]


@dataclass
class Results:
    """All figures of one run, and what they were taken with.

    Attributes:
        about: the command, the date, the machine; the seconds and rounds asked for, and how long it took.
        versions: of packages, by environment.
        measured: by case, contender and round.
        start: seconds to ready and MiB resident, of each start.
        failures: why something is missing, by peer or case and contender.
    """

    about: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    measured: dict[str, dict[str, dict[str, Measurement]]] = field(default_factory=dict)
    start: list[tuple[float, float]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a run that `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Write all, in one step: a run that is killed leaves its last state."""
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        beside.replace(path)

    def add(self, case: str, contender: str, number: int, measurement: Measurement) -> None:
        """Keep what one round gave."""
        rounded = {name: float(f"{value:.5g}") for name, value in measurement.items()}
        self.measured.setdefault(case, {}).setdefault(contender, {})[str(number)] = rounded

    def has(self, case: str, contender: str, number: int) -> bool:
        """Return whether a round is measured."""
        return str(number) in self.measured.get(case, {}).get(contender, {})

    def rounds(self, case: str, contender: str, what: str = "rate") -> dict[str, float]:
        """Return one figure of each round."""
        return {number: each[what] for number, each in self.measured.get(case, {}).get(contender, {}).items()}

    def median(self, case: str, contender: str, what: str = "rate") -> float | None:
        """Return the median over rounds; None where there are none."""
        rounds = self.rounds(case, contender, what)
        return median(rounds.values()) if rounds else None

    def ratio(self, case: str, upper: str, lower: str, what: str = "rate") -> float | None:
        """Return the median of the rounds' ratios of two contenders: within a round the machine is the same."""
        above, below = self.rounds(case, upper, what), self.rounds(case, lower, what)
        both = [above[number] / below[number] for number in above.keys() & below.keys()]
        return median(both) if both else None

    def best(self, case: str, *contenders: str) -> str:
        """Return the contender with the highest median rate."""
        return max(contenders, key=lambda name: self.median(case, name) or 0.0)

    def spread(self) -> list[float]:
        """Return, of each case and contender, how far its rounds' rates lie apart, relative to their median."""
        rates = [
            [each["rate"] for each in rounds.values()] for named in self.measured.values() for rounds in named.values()
        ]
        return [(max(each) - min(each)) / median(each) for each in rates if len(each) > 1]
