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
from typing import Any

import orjson

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its maker otherwise

import ray
import ray.data
from ray.exceptions import RayError

from attention_batch.engines.worker import Task, Worker
from attention_batch.errors import Refused, ScoringError, Stopped
from attention_batch.output.sink import Counts, PartWriter
from attention_batch.readers.source import Shard

MOST_BLOCKS = 1000  # tasks that Ray plans at once; with more shards, several to a task


class Actor:
    """A worker on one core of a node."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score one shard; return its part, or why there is none."""
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
