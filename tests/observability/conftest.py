"""A collector of traces, a Prometheus, and readers of the server's metrics."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import requests
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from serving import HANG, Server, wait_until

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def scraped(server: Server, **headers: str) -> str:
    response = requests.get(f"{server.url}/metrics", headers=headers, timeout=HANG)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return response.text


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, by its name and labels; none may stand twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            key = sample[1], frozenset(LABEL.findall(sample[2] or ""))
            assert key not in found, key
            found[key] = float(sample[3])
    return found


@dataclass
class Metrics:
    """Scraped metrics."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have at least these labels."""
        wanted = labels.items()
        found = [value for (each, its), value in self.samples.items() if each == name and wanted <= set(its)]
        assert found, (name, labels)
        return sum(found)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(its).get(label, "") for each, its in self.samples if each == name}


def metrics_of(server: Server, **headers: str) -> Metrics:
    return Metrics(samples(scraped(server, **headers)))


def entries(log: str, event: str = "request") -> list[dict[str, Any]]:
    """The entries of a log of JSON lines; each line must be one."""
    return [entry for entry in map(json.loads, log.splitlines()) if entry["event"] == event]


def logged(server: Server, count: int) -> list[dict[str, Any]]:
    """The entries of requests, when there are as many: over HTTP an answer may be here before its line."""
    wait_until(lambda: len(entries(server.log)) >= count)
    return entries(server.log)


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans by OTLP over gRPC, as a collector does."""

    address: str = ""
    received: list[trace_service_pb2.ExportTraceServiceRequest] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, _: grpc.ServicerContext) -> Any:
        with self.changed:
            self.received.append(request)
            self.changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[trace_pb2.Span]:
        return [
            span for each in self.received for of in each.resource_spans for s in of.scope_spans for span in s.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        return attributes(self.received[0].resource_spans[0].resource.attributes)

    def wait_for(self, condition: Any) -> list[trace_pb2.Span]:
        """Wait until the spans meet a condition; return them."""
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.spans), HANG), [span.name for span in self.spans]
            return self.spans


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in pairs}


@contextmanager
def run_collector() -> Iterator[Collector]:
    server = grpc.server(ThreadPoolExecutor(4))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
