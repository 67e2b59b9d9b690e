"""Columns that stand in the names of folders, as `day=2026-11-30`: the partitions of Hive, which Spark writes."""

from urllib.parse import unquote

from attention_batch.readers.remote import inside

NULL = "__HIVE_DEFAULT_PARTITION__"


def partitions(path: str) -> dict[str, str | None]:
    """Return name -> value of the folders above a file; a null is None."""
    pairs = [part.partition("=") for part in inside(path).split("/")[:-1] if "=" in part]
    return {unquote(name): None if value == NULL else unquote(value) for name, _, value in pairs if name}
