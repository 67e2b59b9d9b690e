"""A long mixed load, looked at all the while: `python -m tests.trials.soak --seconds 3600`.

Good requests of every block, over each way in, memories, streams, cancelled calls, and malformed messages; every
answer is compared. Memory, threads and open files are sampled; after a warm-up by the load, neither may grow.
"""

import argparse
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
from attention_client import AttentionClient
from serving import ROOT

from tests.trials import hostile_proto, scorecard
from tests.trials.doors import GrpcDoor
from tests.trials.load import ask, sequence_of, under_load
from tests.trials.subject import Subject, Wrong, under_trial

PICTURE = ROOT / "docs/soak.svg"
MOST_MIB = 24.0  # that memory may grow by, from the second quarter to the last
MOST_OTHERS = 8  # threads, and open files
ATTEND = "/attention.v1.AttentionService/Attend"


class Sample(NamedTuple):
    """Memory, threads and open files of the process at one time."""

    seconds: float
    memory: float
    threads: int
    files: int


@dataclass
class Course:
    """Samples and counts of a soak."""

    samples: list[Sample] = field(default_factory=list)
    answered: int = 0
    malformed: int = 0
    left: int = 0

    def growth(self) -> Sample:
        """Return how the medians of the last quarter differ from those of the second."""
        quarter = max(1, len(self.samples) // 4)
        before, after = np.array(self.samples[quarter : 2 * quarter]), np.array(self.samples[-quarter:])
        seconds, memory, threads, files = np.median(after, 0) - np.median(before, 0)
        return Sample(float(seconds), float(memory), int(threads), int(files))

    def check(self) -> None:
        """Raise Wrong where something grew."""
        growth = self.growth()
        if growth.memory > MOST_MIB or growth.threads > MOST_OTHERS or growth.files > MOST_OTHERS:
            raise Wrong(f"grew by {growth.memory:.1f} MiB, {growth.threads} threads and {growth.files} files")


def soak(seconds: float) -> Course:
    """Load a server for so long.

    Raises:
        Wrong: a call was lost, an answer wrong, or something grew.
    """
    course = Course()
    rng = random.Random(1)
    with under_trial(growth=192.0) as subject:
        begun = time.monotonic()
        told = 0.0
        with under_load(subject.server.grpc, subject.goods, threads=2) as load:
            while (now := time.monotonic() - begun) < seconds:
                _one_of_each(subject, rng, course)
                course.samples.append(_sample(subject, now))
                if now - told > seconds / 20:
                    told = now
                    last = course.samples[-1]
                    print(
                        f"{now:6.0f} s  {load.answered:>9,} right  {last.memory:6.1f} MiB"
                        f"  {last.threads} threads  {last.files} files",
                        flush=True,
                    )
        course.answered += load.answered
        subject.check("the soak")
    course.check()
    return course


def _sample(subject: Subject, seconds: float) -> Sample:
    process = subject.process
    return Sample(seconds, subject.memory(), process.num_threads(), process.num_fds())


def _one_of_each(subject: Subject, rng: random.Random, course: Course) -> None:
    """Ask in every way once."""
    good = rng.choice(subject.goods)
    subject.ask(good)
    course.answered += 3
    with AttentionClient(subject.server.grpc, timeout=60) as client:
        ask(client, good)
        sequences = [sequence_of(good)] * 20
        for result in client.attend_many(good.model, sequences, outputs=list(good.outputs), version=good.version):
            good.compare({name: result[name] for name in good.outputs}, "stream")
            course.answered += 1
        dot = next(each for each in subject.goods if each.model == "dot")
        memory = client.create_memory("dot", key=dot.inputs["key"], value=dot.inputs["value"])
        result = client.attend("dot", query=dot.inputs["query"], memory=memory, outputs=list(dot.outputs))
        dot.compare({name: result[name] for name in dot.outputs}, "memory")
        course.answered += 2
    door = GrpcDoor(subject)
    body = good.message().SerializeToString()
    door.send(ATTEND, [hostile_proto.damaged(body, rng) for _ in range(20)])
    door.close()
    course.malformed += 20
    with grpc.insecure_channel(subject.server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        futures = [channel.unary_unary(ATTEND).future(body, timeout=60) for _ in range(10)]
        threading.Event().wait(rng.random() * 0.003)
        for future in futures:
            future.cancel()
    course.left += 10


def draw(course: Course, path: Path = PICTURE) -> None:
    """Draw memory over time."""
    import matplotlib as mpl  # noqa: PLC0415 # it takes a second to load

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "soak"
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    shown = course.samples[:: max(1, len(course.samples) // 400)]
    axes.plot([each.seconds for each in shown], [each.memory for each in shown], linewidth=1)
    axes.set(xlabel="seconds", ylabel="resident memory, MiB", ylim=(0, None), xlim=(0, None))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="A long mixed load.")
    parser.add_argument("--seconds", type=float, default=3600)
    chosen = parser.parse_args()
    course = soak(chosen.seconds)
    draw(course)
    growth = course.growth()
    scorecard.write(
        "soak",
        f"make soak SECONDS={chosen.seconds:g}",
        {
            "right answers": f"{course.answered:,}",
            "wrong answers": "0",
            "lost calls": "0",
            "concurrent malformed messages, cancelled calls": f"{course.malformed:,}, {course.left:,}",
            "growth of memory, second to last quarter": f"{growth.memory:+.1f} MiB",
            "growth of threads, open files, likewise": f"{growth.threads:+d}, {growth.files:+d}",
        },
    )


if __name__ == "__main__":
    main()
