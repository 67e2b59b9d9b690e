"""A server under trial: its due answers, and the one check that follows each hostile case."""

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import psutil
import requests
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.attention.v1.attention_pb2_grpc import AttentionServiceStub
from attention_proto.inference import grpc_predict_v2_pb2 as oip
from attention_proto.inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import HANG, ROOT, Server, made_repository, start_server

from tests.messages import DTYPES, read_document, read_message, request_message
from tests.server.reference import BLOCKS, CLOSE, read_block

MIB = 2**20
SECONDS_TO_SETTLE = 240.0  # a guard against hanging
# Secrets of the server: its paths, its code and the addresses of its memory.
LEAKS = re.compile(
    r"Traceback \(most recent|File \\?\"|\.py\b|site-packages|object at 0x|0x[0-9a-f]{8,}|errno|onnxruntime|numpy"
    r"|attention_server|Exception (?:calling|deserializing|iterating)|" + re.escape(str(ROOT)),
    re.IGNORECASE,
)
OUR_FAULTS = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
IN_THE_LOG = ("Traceback", "fault of ours", "Exception ")


class Wrong(AssertionError):
    """The server broke one of the rules of the trials."""


class Good(NamedTuple):
    """A request with its right answer, computed by the formulas in float64."""

    model: str
    version: int
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def message(self) -> pb.AttendRequest:
        return request_message(self.model, [self.inputs], version=self.version, outputs=list(self.outputs))

    def document(self) -> dict[str, Any]:
        return {name: each.tolist() for name, each in self.inputs.items()} | {"outputs": list(self.outputs)}

    def infer(self) -> oip.ModelInferRequest:
        tensor = oip.ModelInferRequest.InferInputTensor
        return oip.ModelInferRequest(
            model_name=self.model,
            model_version=str(self.version),
            inputs=[tensor(name=name, datatype="FP32", shape=(1, *x.shape)) for name, x in self.inputs.items()],
            outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in self.outputs],
            raw_input_contents=[each.tobytes() for each in self.inputs.values()],
        )

    def compare(self, outputs: Mapping[str, np.ndarray], way: str) -> None:
        """Raise Wrong unless the outputs are this request's."""
        for name, right in self.outputs.items():
            if name not in outputs or not np.allclose(outputs[name], right, **CLOSE):
                raise Wrong(f"{way}: {self.model} {self.version}: {name} is wrong")


@cache
def goods(repository: Path, lengths: tuple[int, ...] = (1, 5, 17)) -> tuple[Good, ...]:
    """Make requests to every block, with the right answers."""
    rng = np.random.default_rng(1)
    made = []
    for case in BLOCKS:
        for version in sorted(int(each.name) for each in (repository / case.model).iterdir()):
            block = read_block(repository, case.model, version)
            for length in lengths:
                inputs = case.vectors(rng, length, length + 2)
                if (case.model, version) == ("self", 1):
                    inputs.pop("value")  # as wide as the key
                stages = block.stages(inputs["query"].astype(float), *(inputs.get(x) for x in ("key", "value")))
                outputs = {name: stages[name] for name in ("output", "weights")}
                made.append(Good(case.model, version, inputs, outputs))
    return tuple(made)


@dataclass
class Subject:
    """A server under trial.

    Attributes:
        server: its process and addresses.
        goods: the requests that show whether it still answers.
        growth: MiB of memory that it may have gained by the time it has settled.
        peak: the most that it had settled at, above where it began, MiB.
        checks: how many were passed.
    """

    server: Server
    goods: tuple[Good, ...]
    growth: float = 96.0
    peak: float = field(default=0.0, init=False)
    checks: int = field(default=0, init=False)
    _next: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.process = psutil.Process(self.server.process.pid)
        self.channel = grpc.insecure_channel(self.server.grpc, [("grpc.use_local_subchannel_pool", 1)])
        self._attend = AttentionServiceStub(self.channel).Attend
        self._infer = GRPCInferenceServiceStub(self.channel).ModelInfer
        self._health = health_pb2_grpc.HealthStub(self.channel).Check
        for _ in range(3):
            for good in self.goods:
                self.ask(good)
        self.before = self.memory()

    def memory(self) -> float:
        """Return the memory of the process in MiB."""
        return self.process.memory_info().rss / MIB

    def ask(self, good: Good) -> None:
        """Ask in each of three ways, and compare the answers."""
        sent = read_message(self._attend(good.message(), timeout=60))["results"][0]["outputs"]
        good.compare(sent, "gRPC")
        url = f"{self.server.url}/v1/models/{good.model}/versions/{good.version}:attend"
        response = requests.post(url, json=good.document(), timeout=60)
        if response.status_code != 200:
            raise Wrong(f"a good request had {response.status_code} {response.text[:300]}")
        good.compare(read_document(response.json())["results"][0]["outputs"], "REST")
        infer = self._infer(good.infer(), timeout=60)
        arrays = {
            each.name: np.frombuffer(raw, DTYPES[each.datatype]).reshape(each.shape)[0]
            for each, raw in zip(infer.outputs, infer.raw_output_contents, strict=True)
        }
        good.compare(arrays, "OIP")

    def check(self, after: str) -> None:
        """Check that a hostile case left no trace: the one check that follows each.

        The same process is alive, healthy on both ports and ready; the next good answer is right in three ways; its
        memory is back; and its log has no fault of ours.
        """
        try:
            self._check_health()
            self.ask(self.goods[self._next % len(self.goods)])
            self._next += 1
            self._settle()
            self.check_log()
        except Exception as error:
            raise Wrong(f"after {after}: {type(error).__name__}: {error}") from error
        self.checks += 1

    def _check_health(self) -> None:
        if self.server.process.poll() is not None:
            raise Wrong(f"the process ended with {self.server.process.returncode}: {self.server.log[-2000:]}")
        for path in ("healthz", "readyz"):
            status = requests.get(f"{self.server.url}/{path}", timeout=30).status_code
            if status != 200:
                raise Wrong(f"/{path} says {status}")
        if self._health(health_pb2.HealthCheckRequest(), timeout=30).status != health_pb2.HealthCheckResponse.SERVING:
            raise Wrong("gRPC's health is not SERVING")

    def check_log(self) -> None:
        """Raise Wrong if a fault of ours was logged."""
        log = self.server.log
        for words in IN_THE_LOG:
            if words in log:
                at = log.index(words)
                raise Wrong(f"the log has {words!r}: {log[max(0, at - 300) : at + 6000]}")

    def _settle(self) -> None:
        """Wait until the memory is back."""
        end = time.monotonic() + SECONDS_TO_SETTLE
        while (grown := self.memory() - self.before) > self.growth:
            if time.monotonic() > end:
                raise Wrong(f"memory grew by {grown:.0f} MiB, and stays")
            threading.Event().wait(0.05)
        self.peak = max(self.peak, grown)

    def close(self) -> None:
        self.channel.close()


def judge(code: str, text: str) -> None:
    """Look at a refusal: it is none of our faults, and tells nothing of the server.

    Args:
        code: gRPC's, by name, or HTTP's.
        text: all that the caller is told.

    Raises:
        Wrong: it is, or does.
    """
    if code in OUR_FAULTS or code in ("500", "502"):
        raise Wrong(f"answered {code} {text[:500]}")
    if leak := LEAKS.search(text):
        raise Wrong(f"a refusal ({code}) tells {leak[0]!r}: {text[:500]}")


@contextmanager
def under_trial(*arguments: object, growth: float = 96.0, models: Path | None = None) -> Iterator[Subject]:
    """Start a server, end it after the block, and see that it stops cleanly and logged no fault."""
    repository = made_repository()
    with start_server(models or repository, *arguments) as server:
        subject = Subject(server, goods(repository), growth)
        try:
            yield subject
        finally:
            subject.close()
        server.process.terminate()
        server.process.wait(HANG)
        subject.check_log()
