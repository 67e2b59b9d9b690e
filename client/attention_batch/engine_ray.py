"""The same shards on a Ray cluster: Ray Data spreads them over actors, each with a model in its own process.

What Ray Data brings is the pool of actors, bounded flow, and doing again what a lost node had. The journal stays with
the run that started it: a shard's part comes back as bytes, and is written and entered here. So the cluster shares no
folder but the input's.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its maker otherwise

import ray
import ray.data

from attention_batch.engine_local import LocalEngine
from attention_batch.fields import Fields
from attention_batch.scorer import Question, Scorer, pack
from attention_batch.sink import Counts, Layout, PartWriter
from attention_batch.source import InputFile, Shard, of_files

MOST_BLOCKS = 1000  # tasks that Ray plans at once; with more shards, several to a task


@dataclass(frozen=True)
class Task:
    """What an actor has to know.

    Attributes:
        files: of the input, at the same paths on every node.
        fields: how its rows are read.
        question: about every row.
        layout: of the parts.
        models: the repository's folder on every node; None for the embedded one.
    """

    files: tuple[InputFile, ...]
    fields: Fields
    question: Question
    layout: Layout
    models: Path | None


class Actor:
    """Scores shards on one core of a node."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._source = of_files(task.files)
        self._scorer = Scorer(LocalEngine(task.models, lanes=1), task.question, patience=0)
        self._scorer.confirm()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score one shard; return its part."""
        shard = batch["shard"][0]
        output, errors = io.BytesIO(), io.BytesIO()
        writer = PartWriter(output, errors, self._task.layout)
        for _, outcomes in self._scorer.score(pack(shard.index, self._source.read(shard, self._task.fields))):
            writer.add(outcomes)
        writer.close()
        return {
            "shard": [shard],
            "output": [output.getvalue()],
            "errors": [errors.getvalue()],
            "counts": [writer.counts],
        }


def scored(task: Task, shards: Iterator[Shard]) -> Iterator[tuple[Shard, bytes, bytes, Counts]]:
    """Yield the parts of shards as they are done, in any order.

    The cluster is that of RAY_ADDRESS, or of this machine where there is none.
    """
    todo = [{"shard": shard} for shard in shards]
    if not todo:
        return
    owned = not ray.is_initialized()
    if owned:
        ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cores = max(1, int(resources.get("CPU", 1)))
    try:
        rows = ray.data.from_items(todo, override_num_blocks=min(len(todo), MOST_BLOCKS)).map_batches(
            Actor, fn_constructor_args=(task,), batch_size=1, num_cpus=1, concurrency=(1, min(cores, len(todo)))
        )
        for row in rows.iter_rows():
            yield row["shard"], row["output"], row["errors"], row["counts"]
    finally:
        if owned:
            ray.shutdown()
