"""The task of a worker process."""

from dataclasses import dataclass, field
from pathlib import Path

from attention_batch.output.sink import OutputLayout
from attention_batch.readers.fields import Fields
from attention_batch.readers.source import InputFile
from attention_batch.spec import ScoringSpec


@dataclass(frozen=True)
class Task:
    """All that a worker needs besides its shards.

    Attributes:
        files: of the input, at the same paths on every machine that has workers.
        fields: reads the rows of the files.
        spec: the model version and outputs.
        layout: of the parts.
        models: the repository's folder on the worker's machine; None for the embedded one.
        folder: the working folder, against which relative paths resolve.
    """

    files: tuple[InputFile, ...]
    fields: Fields
    spec: ScoringSpec
    layout: OutputLayout
    models: Path | None
    folder: Path = field(default_factory=Path.cwd)
