"""A file of texts, scored by an imported transformer in packs, has the same bytes by every way."""

import hashlib
import signal
from threading import Event, Thread

import numpy as np
import pytest
from attention_client import AttentionClient
from serving import start_server

from tests.batch.scoring import begun, scored, shards_done, wait_until, write

ROWS, SHARD, MOST_WORDS = 400, 10, 30
RUN = ("--model", "bert", "--outputs", "hidden:mean,entropy:mean", "--shard-rows", SHARD)


def draw(count, seed=0):
    """Draw texts of any lengths, many of them short."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(0, np.log(MOST_WORDS), count)).astype(int)
    return [" ".join(f"w{word}" for word in rng.integers(5, 100, length)) for length in lengths]


@pytest.fixture(scope="module")
def servers(tiny_versions, tmp_path_factory):
    """The repository, and two servers of it, of which the first answers further callers without a break."""
    models = tmp_path_factory.mktemp("packs")
    tiny_versions.serve_in(models, "bert", "bert")
    left = Event()

    def keep_busy(target):
        with AttentionClient(target) as client:
            while not left.is_set():
                for _ in client.attend_many("bert", draw(64, 1), outputs=["hidden"]):
                    pass

    with start_server(models) as first, start_server(models) as second:
        foreign = Thread(target=keep_busy, args=(first.grpc,))
        foreign.start()
        try:
            yield models, first.grpc, second.grpc
        finally:
            left.set()
            foreign.join()


def test_every_way_gives_one_file(servers, tmp_path):
    """In process, by one server under foreign load, by two, and killed twice: one SHA-256."""
    models, first, second = servers
    source = write(tmp_path / "in.parquet", {"id": range(ROWS), "text": draw(ROWS)})
    ways = (("--engine", "local", "--models", models), ("--target", first), ("--target", f"{first},{second}"))
    outputs = [tmp_path / f"{place}.parquet" for place in range(len(ways) + 1)]
    for output, way in zip(outputs, ways, strict=False):
        done = scored(source, output, *RUN, *way)
        assert done.returncode == 0, done.stderr
    *_, last = outputs
    for until in (ROWS // SHARD // 6, ROWS // SHARD // 2):
        run = begun(source, last, *RUN, *ways[1])
        wait_until(lambda until=until: shards_done(last) >= until, run)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    assert scored(source, last, *RUN, *ways[1]).returncode == 0
    assert len({hashlib.sha256(each.read_bytes()).hexdigest() for each in outputs}) == 1
