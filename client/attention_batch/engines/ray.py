"""Shards spread over a Ray cluster by Ray Data, as actors with one model each.

Ray Data has the pool of actors, bounds the shards under way, and repeats the shards of a lost node. The journal stays
with the run: a part comes back as bytes, and the run writes it. So the cluster needs no shared folder but the input's.
"""

import dataclasses
import io
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import orjson

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports usage to its maker

import ray
import ray.data
from ray.exceptions import RayError

from attention_batch.engines.task import Task
from attention_batch.engines.worker import Worker
from attention_batch.errors import Refused, ScoringError, Stopped
from attention_batch.output.sink import Counts, FinishedShard, PartWriter, write_part
from attention_batch.readers.source import Shard

MOST_BLOCKS = 1000  # tasks that Ray plans at once; with more shards, a task has several


class Actor:
    """A worker on one core of a node."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score one shard; return its part, or the error that prevented it."""
        shard = Shard(**orjson.loads(batch["shard"][0]))
        output, errors = io.BytesIO(), io.BytesIO()
        counts, failure, refused = Counts(), "", False
        try:
            self._worker = self._worker or Worker(self._task)
            writer = PartWriter(output, errors, self._task.layout)
            self._worker.score(shard, writer)
            writer.close()
            counts = writer.counts
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


def scored(task: Task, shards: Iterator[Shard], folder: Path) -> Generator[FinishedShard]:
    """Yield each shard once its part is written, in any order.

    The cluster is the one at RAY_ADDRESS; without that variable, a new one on this machine.

    Args:
        task: of every actor.
        shards: to be scored.
        folder: for the parts.

    Raises:
        Refused: the model cannot give the requested outputs.
        Stopped: the cluster is gone, or an actor failed.
    """
    todo = [{"shard": orjson.dumps(dataclasses.asdict(shard)).decode()} for shard in shards]
    if not todo:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        interrupt = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, interrupt)  # ray.init installs a handler that ends the process
        for row in _rows(task, todo):
            if row["failure"]:
                raise Refused(row["failure"]) if row["refused"] else Stopped(row["failure"])
            shard, counts = Shard(**orjson.loads(row["shard"])), Counts(**orjson.loads(row["counts"]))
            write_part(folder, shard.index, row["output"], row["errors"])
            yield FinishedShard(shard, counts)
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
