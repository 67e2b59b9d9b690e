"""Writer of docs/scorecard.md, the results of the last full run of each trial."""

import re
from collections.abc import Mapping

from serving import ROOT

PAGE = ROOT / "docs/scorecard.md"
CHECKS = "checks passed (same process, healthy, next answer right, memory back, log clean)"


def write(name: str, command: str, figures: Mapping[str, str]) -> None:
    """Replace a trial's table.

    Args:
        name: the trial's name; its table is between `<!-- name -->` and `<!-- /name -->`.
        command: the command of the run.
        figures: measurement -> result.
    """
    lines = [f"| `{command}` | {measurement} | {result} |" for measurement, result in figures.items()]
    for line in lines:
        print(line)
    between = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    table = "| command | measurement | result |\n|---|---|---|\n" + "\n".join(lines) + "\n"
    content, count = between.subn(lambda _: table, PAGE.read_text())
    assert count == 1, f"{PAGE} has no place for {name}"
    PAGE.write_text(content)
