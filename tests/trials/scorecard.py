"""docs/scorecard.md: what each trial showed, when it was last run in full."""

import re
from collections.abc import Mapping

from serving import ROOT

PAGE = ROOT / "docs/scorecard.md"
CHECKS = "checks passed: same process, healthy, next answer right, memory back, log clean"


def write(name: str, command: str, figures: Mapping[str, str]) -> None:
    """Write a trial's figures in place of those of its last run.

    Args:
        name: of the trial; its lines stand between `<!-- name -->` and `<!-- /name -->`.
        command: that gave them.
        figures: what was looked at, and what was seen.
    """
    lines = [f"| `{command}` | {what} | {seen} |" for what, seen in figures.items()]
    for line in lines:
        print(line)
    between = re.compile(f"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    table = "| command | what | seen |\n|---|---|---|\n" + "\n".join(lines) + "\n"
    content, count = between.subn(lambda _: table, PAGE.read_text())
    assert count == 1, f"{PAGE} has no place for {name}"
    PAGE.write_text(content)
