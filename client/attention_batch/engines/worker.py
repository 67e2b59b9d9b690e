"""A worker of the engines with many processes: a local engine that scores whole shards, one after another."""

import os
from collections.abc import Callable

from attention_proto.allocator import keep_freed

from attention_batch.engines.local import LocalEngine
from attention_batch.engines.task import Task
from attention_batch.output.sink import Counts, PartWriter
from attention_batch.readers.selection import files_source
from attention_batch.readers.source import Shard
from attention_batch.retry import RetryPolicy
from attention_batch.scorer import Scorer, make_batches


class Worker:
    """A scorer of shards on one core.

    Raises:
        Refused: the repository cannot be loaded.
        Stopped: the repository's model is not the task's.
    """

    def __init__(self, task: Task) -> None:
        keep_freed()
        os.chdir(task.folder)
        self._task = task
        self._source = files_source(task.files)
        self._scorer = Scorer(LocalEngine(task.models, concurrency=1), task.spec, RetryPolicy(0, print))
        self._scorer.confirm()

    def score(self, shard: Shard, writer: PartWriter, tell: Callable[[Counts], None] = lambda _: None) -> None:
        """Write a shard's part.

        Args:
            shard: of the task's files.
            writer: receives the rows; stays open.
            tell: called after each batch with the part's counts so far.

        Raises:
            ScoringError: the run cannot go on.
        """
        rows = self._source.read(shard, self._task.fields)
        for _, results in self._scorer.score(make_batches(shard.index, rows)):
            writer.add(results)
            tell(writer.counts)
