"""Shards scored in this process, through a client or by a local engine's threads."""

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing

from attention_batch.output.sink import Counts, FinishedShard, PartWriter
from attention_batch.readers.fields import Fields
from attention_batch.readers.source import Shard, Source
from attention_batch.scorer import RowBatch, RowResult, Scorer, make_batches

OpenPart = Callable[[int], AbstractContextManager[PartWriter]]


def scored(
    scorer: Scorer, source: Source, fields: Fields, shards: Iterator[Shard], opened: OpenPart
) -> Generator[FinishedShard | Counts]:
    """Yield each shard once its part is written, in order, and after each batch the counts of the part under way.

    Rows of the next shards are read and scored while a part is written.

    Args:
        scorer: scores batches of rows.
        source: has the shards.
        fields: reads rows.
        shards: to be scored.
        opened: opens the part of a shard, by its index.

    Raises:
        ScoringError: the run cannot go on.
    """
    begun: dict[int, Shard] = {}

    def batches() -> Iterator[RowBatch]:
        for shard in shards:
            begun[shard.index] = shard
            yield from make_batches(shard.index, source.read(shard, fields))

    with closing(scorer.score(batches())) as answers:
        for batch, first in answers:
            with opened(batch.shard) as writer:
                for results in itertools.chain([first], _rest(batch, answers)):
                    writer.add(results)
                    yield writer.counts
            scorer.confirm()
            yield FinishedShard(begun.pop(batch.shard), writer.counts)


def _rest(batch: RowBatch, answers: Iterator[tuple[RowBatch, list[RowResult]]]) -> Iterator[list[RowResult]]:
    """Yield the results of the batches after `batch`, taken from `answers`, up to the last batch of its shard."""
    while not batch.last:
        batch, results = next(answers)
        yield results
