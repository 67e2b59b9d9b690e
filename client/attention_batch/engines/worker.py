"""A worker: whole shards, with a model of its own, one after another. What engines of many processes are made of."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from attention_proto.allocator import keep_freed

from attention_batch.engines.local import LocalEngine
from attention_batch.output.sink import Counts, Layout, PartWriter
from attention_batch.readers.fields import Fields
from attention_batch.readers.source import InputFile, Shard, of_files
from attention_batch.retry import Patience
from attention_batch.scorer import Question, Scorer, pack


@dataclass(frozen=True)
class Task:
    """What a worker has to know.

    Attributes:
        files: of the input, at the same paths wherever there are workers.
        fields: how its rows are read.
        question: about every row.
        layout: of the parts.
        models: the repository's folder there; None for the embedded one.
        folder: which relative paths start from.
    """

    files: tuple[InputFile, ...]
    fields: Fields
    question: Question
    layout: Layout
    models: Path | None
    folder: Path = field(default_factory=Path.cwd)


class Worker:
    """Computes on one core.

    Raises:
        Refused: the repository cannot be loaded.
        Stopped: its model is not the one that the task is about.
    """

    def __init__(self, task: Task) -> None:
        keep_freed()
        os.chdir(task.folder)
        self._task = task
        self._source = of_files(task.files)
        self._scorer = Scorer(LocalEngine(task.models, lanes=1), task.question, Patience(0, print))
        self._scorer.confirm()

    def score(self, shard: Shard, writer: PartWriter, tell: Callable[[Counts], None] = lambda _: None) -> None:
        """Write a shard's part.

        Args:
            shard: which.
            writer: takes it; not closed.
            tell: told now and then what the part holds.

        Raises:
            ScoringError: the run cannot go on.
        """
        rows = self._source.read(shard, self._task.fields)
        for _, outcomes in self._scorer.score(pack(shard.index, rows)):
            writer.add(outcomes)
            tell(writer.counts)
