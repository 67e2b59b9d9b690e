"""A stand-in for onnxruntime with CUDA, where there is no GPU: sessions compute on the CPU and report CUDA.

Beyond it are CUDA's kernels, their precision and speed, which nodes CUDA takes, and a device that is lost.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort
import pytest
from attention_server.inference.engine import onnxruntime as engine
from attention_server.inference.engine.onnxruntime import CPU, CUDA

Part = ort.OrtEpAssignedSubgraph


@dataclass
class AssignedNode:
    """A node in the form of `OrtEpAssignedNode`."""

    name: str
    op_type: str
    domain: str = ""


@dataclass
class AssignedPart:
    """Nodes of one provider in the form of `OrtEpAssignedSubgraph`."""

    ep_name: str
    nodes: list[AssignedNode]

    def get_nodes(self) -> list[AssignedNode]:
        return self.nodes


@dataclass
class StandInGpu:
    """onnxruntime's module with CUDA.

    Attributes:
        on_cpu: operators that CUDA has no kernel for.
        lost: whether new sessions are made on the CPU alone, as when the driver fails.
        out_of_memory: raised when a session is made with CUDA.
    """

    on_cpu: Sequence[str] = ()
    lost: bool = False
    out_of_memory: Exception | None = None
    providers: list[list[str]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(ort, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(  # onnxruntime's name
        self,
        content: bytes,
        options: ort.SessionOptions,
        *,
        providers: list[tuple[str, dict[str, str]]],
        enable_fallback: int = 1,
    ) -> ort.InferenceSession:
        names = [name for name, _ in providers]
        assert all(settings == {"use_tf32": "0"} for name, settings in providers if name == CUDA)
        assert not enable_fallback, "a session that fails on the GPU would be made on the CPU, unseen"
        self.providers.append(names)
        if CUDA in names and self.out_of_memory:
            raise self.out_of_memory
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = ort.InferenceSession(content, options, providers=[CPU])
        if CUDA in names and not self.lost:
            assigned = self._assigned(session)
            session.get_providers = lambda: [CUDA, CPU]
            session.get_provider_graph_assignment_info = lambda: assigned
        return session

    def _assigned(self, session: ort.InferenceSession) -> list[AssignedPart]:
        nodes = itertools.chain.from_iterable(part.get_nodes() for part in session.get_provider_graph_assignment_info())
        return [
            AssignedPart(CPU if node.op_type in self.on_cpu else CUDA, [AssignedNode(node.name, node.op_type)])
            for node in nodes
        ]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "StandInGpu":
        """Have the server's engine use it."""
        monkeypatch.setattr(engine, "ort", self)
        return self
