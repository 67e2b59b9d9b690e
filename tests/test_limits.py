"""The table of limits says what the settings and the refusals say."""

import re

from attention_server.settings import Settings
from serving import ROOT

ROWS = re.findall(
    r"^\| `--([a-z-]+)` \| (.*?) \| (.*?) \| (.*?) \|$", (ROOT / "docs/limits.md").read_text(), re.MULTILINE
)
SOURCE = "\n".join(each.read_text() for each in (ROOT / "server/attention_server").rglob("*.py"))


def test_each_limit_has_a_row():
    """Every setting that bounds something is in the table, once."""
    limits = {name for name in Settings.model_fields if name.startswith("max_") or name.endswith("_mib")}
    limits |= {"slots", "memory_ttl", "grace"}
    assert sorted(row[0].replace("-", "_") for row in ROWS) == sorted(limits)


def test_defaults_are_those_of_the_settings():
    """A default that is a number is the setting's; one of the memory is what the help says; 0 slots are the cores."""
    for flag, default, *_ in ROWS:
        field = Settings.model_fields[flag.replace("-", "_")]
        if field.default_factory is not None or flag == "slots":
            assert default in field.description, flag
        else:
            assert default == ("none" if field.default is None else str(field.default)), flag


def test_refusals_are_those_of_the_server():
    """Each quoted part of a refusal stands in the server's code."""
    for flag, _, _, refusal in ROWS:
        for quoted in re.findall('"([^"]+)"', refusal):
            assert quoted in SOURCE, f"--{flag}: {quoted}"
