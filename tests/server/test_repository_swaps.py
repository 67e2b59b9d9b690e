"""Many changes of version under load."""

import re
import shutil
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from serving import HANG, start_server, wait_until

from tests.messages import read_message, request_message
from tests.server.lives import ASKED, POLLING, QUERY
from tests.server.spoil import change_weights

VARIANTS = 5  # neighbouring versions never look alike
CALLERS = 8
SETTLED = 20  # swaps after which memory has its level
MORE_MIB = 12


def resident(pid):
    """Return a process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


class Callers:
    """Callers that send requests without a pause and check each answer.

    Attributes:
        answers: how many came, by version.
        faults: the failures.
    """

    def __init__(self, address, expected):
        self.answers = {}
        self.faults = []
        self._address, self._expected = address, expected
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        request = request_message("multi", [{"query": QUERY}], outputs=ASKED)
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = AttentionServiceStub(channel)
            while not self._stopping.is_set():
                try:
                    self._look_at(stub.Attend(request, timeout=HANG))
                except (grpc.RpcError, AssertionError) as error:
                    self.faults.append(error)

    def _look_at(self, message):
        answer = read_message(message)
        outputs = answer["results"][0]["outputs"]
        for name, expected in self._expected[answer["version"] % VARIANTS].items():
            np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)
        self.answers[answer["version"]] = self.answers.get(answer["version"], 0) + 1


@pytest.mark.parametrize("swaps", [30, pytest.param(100, marks=pytest.mark.long)])
def test_swaps_under_load(models, publish, repository, tmp_path, connect, swaps):
    """While 8 callers ask without a pause, often a new version takes over and the one before it goes: no request
    fails, every answer is whole of the version that it names, and memory is back at its level."""
    variants = []
    for number in range(VARIANTS):
        folder = tmp_path / f"variant-{number}"
        shutil.copytree(repository / "multi/1", folder)
        change_weights(folder, 1 + number / 4)
        variants.append(folder)

    def put(version):
        shutil.copytree(variants[version % VARIANTS], tmp_path / "next")
        (tmp_path / "next").rename(models / "multi" / str(version))

    shutil.rmtree(models / "multi/1")
    for version in range(1, VARIANTS + 1):
        put(version)
    waits = ("--max-wait", HANG)  # on a busy machine eight callers are more than can be computed in the default
    with start_server(models, *POLLING, *waits) as server, grpc.insecure_channel(server.grpc) as channel:
        transport = connect("grpc", server.rest, server.grpc)
        expected = {
            version % VARIANTS: transport.outputs("multi", version=version, query=QUERY, outputs=ASKED)
            for version in range(1, VARIANTS + 1)
        }
        for one, other in zip(expected.values(), [*expected.values()][1:], strict=False):
            assert not any(np.allclose(one[name], other[name], rtol=1e-3) for name in ASKED)
        for version in range(1, VARIANTS):
            shutil.rmtree(models / "multi" / str(version))
        stub = AttentionServiceStub(channel)

        def served():
            return list(stub.GetModel(pb.GetModelRequest(model="multi")).versions)

        wait_until(lambda: served() == [VARIANTS])
        before = resident(server.process.pid)
        with Callers(server.grpc, expected) as callers:
            for version in range(VARIANTS, VARIANTS + swaps):
                put(version + 1)
                wait_until(lambda: version + 1 in served())  # noqa: B023 # at once
                shutil.rmtree(models / "multi" / str(version))
                wait_until(lambda: served() == [version + 1])  # noqa: B023 # at once
                if version == VARIANTS + SETTLED:
                    level = resident(server.process.pid)
            wait_until(lambda: callers.faults or VARIANTS + swaps in callers.answers)
            last = resident(server.process.pid)
        assert not callers.faults, (len(callers.faults), callers.faults[0])
        assert set(range(VARIANTS + 1, VARIANTS + swaps + 1)) - callers.answers.keys() == set()
        wait_until(lambda: server.log.count("model unloaded") == VARIANTS - 1 + swaps)
        after = resident(server.process.pid)
        print(
            f"{sum(callers.answers.values())} answers; MiB: {before:.1f} before, {level:.1f} settled, {last:.1f} "
            f"at the last swap, {after:.1f} after"
        )
        assert after < level + MORE_MIB
