"""The same shards on a Ray cluster: Ray Data spreads them over actors, each with a model in its own process.

What Ray Data brings is the pool of actors, bounded flow, and doing again what a lost node had. The journal stays with
the run that started it: a shard's part comes back as bytes, and is written and entered here. So the cluster shares no
folder but the input's.
"""

import dataclasses
import io
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its maker otherwise

import ray
import ray.data
from attention_proto.allocator import keep_freed
from ray.exceptions import RayError

from attention_batch.engine_local import LocalEngine
from attention_batch.errors import Refused, ScoringError, Stopped
from attention_batch.fields import Fields
from attention_batch.patience import Patience
from attention_batch.scorer import Question, Scorer, pack
from attention_batch.sink import Counts, Layout, PartWriter
from attention_batch.source import InputFile, Shard, Source, of_files

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
        folder: which relative paths start from.
    """

    files: tuple[InputFile, ...]
    fields: Fields
    question: Question
    layout: Layout
    models: Path | None
    folder: Path = field(default_factory=Path.cwd)


class Actor:
    """Scores shards on one core of a node."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._ready: tuple[Source, Scorer] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score one shard; return its part, or why there is none."""
        shard = Shard(**orjson.loads(batch["shard"][0]))
        output, errors = io.BytesIO(), io.BytesIO()
        counts, failure, refused = Counts(), "", False
        try:
            counts = self._score(shard, output, errors)
        except (ScoringError, OSError) as error:
            failure, refused = str(error), isinstance(error, Refused)
        return {
            "shard": [batch["shard"][0]],
            "output": [output.getvalue()],
            "errors": [errors.getvalue()],
            "counts": [orjson.dumps(counts).decode()],
            "failure": [failure],
            "refused": [refused],
        }

    def _score(self, shard: Shard, output: io.BytesIO, errors: io.BytesIO) -> Counts:
        source, scorer = self._ready = self._ready or self._prepared()
        writer = PartWriter(output, errors, self._task.layout)
        for _, outcomes in scorer.score(pack(shard.index, source.read(shard, self._task.fields))):
            writer.add(outcomes)
        writer.close()
        return writer.counts

    def _prepared(self) -> tuple[Source, Scorer]:
        keep_freed()
        os.chdir(self._task.folder)
        scorer = Scorer(LocalEngine(self._task.models, lanes=1), self._task.question, Patience(0, print))
        scorer.confirm()
        return of_files(self._task.files), scorer


def scored(task: Task, shards: Iterator[Shard]) -> Iterator[tuple[Shard, bytes, bytes, Counts]]:
    """Yield the parts of shards as they are done, in any order.

    The cluster is that of RAY_ADDRESS, or one on this machine where there is none.

    Raises:
        Refused: what was asked for cannot be done.
        Stopped: the cluster has gone, or an actor cannot work.
    """
    todo = [{"shard": orjson.dumps(dataclasses.asdict(shard)).decode()} for shard in shards]
    if not todo:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        interrupt = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, interrupt)  # in its place it had put what ends the process
        for row in _rows(task, todo):
            if row["failure"]:
                raise Refused(row["failure"]) if row["refused"] else Stopped(row["failure"])
            shard, counts = orjson.loads(row["shard"]), orjson.loads(row["counts"])
            yield Shard(**shard), row["output"], row["errors"], Counts(**counts)
    except (RayError, ConnectionError) as error:
        raise Stopped(f"the Ray cluster failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _rows(task: Task, todo: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    actors = min(len(todo), max(1, int(resources.get("CPU", 1))))
    items = ray.data.from_items(todo, override_num_blocks=min(len(todo), MOST_BLOCKS))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors)
    yield from items.map_batches(Actor, fn_constructor_args=(task,), batch_size=1, num_cpus=1, compute=pool).iter_rows()
