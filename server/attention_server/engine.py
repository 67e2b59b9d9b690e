"""onnxruntime, behind a protocol small enough to stand in for it: a graph runs, and that is all."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import onnxruntime as ort
import structlog

from attention_server.domain import Array

Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"

log = structlog.get_logger()


class DeviceError(RuntimeError):
    """The device asked for is not there."""


class Graph(Protocol):
    """A computation with named inputs and outputs; `run` may be called from many threads."""

    @property
    def inputs(self) -> Sequence[str]:
        """The names that `run` must be fed."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """The names that `run` can compute."""
        ...

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Compute the outputs named, in their order."""
        ...


class Engine:
    """Opens graphs on one device.

    Args:
        device: `auto` takes CUDA where onnxruntime offers it and a session really runs on it, else the CPU.
        threads: CPU threads of one run.

    Raises:
        DeviceError: `cuda` was asked for and is not offered.
    """

    def __init__(self, device: Device, threads: int) -> None:
        offered = CUDA in ort.get_available_providers()
        if device == "cuda" and not offered:
            raise DeviceError(
                "device=cuda was asked for, but this onnxruntime offers no CUDA: install attention-service[server-gpu] "
                "on a machine with an NVIDIA GPU, or use device=cpu"
            )
        self._required = device == "cuda"
        self._threads = threads
        self.device: Literal["cpu", "cuda"] = "cuda" if offered and device != "cpu" else "cpu"

    def open(self, content: bytes) -> Graph:
        """Open an ONNX file.

        Raises:
            DeviceError: `cuda` was asked for and a session does not run on it.
        """
        session = ort.InferenceSession(content, self._options(), providers=self._providers())
        if self.device == "cuda" and CUDA not in session.get_providers():
            if self._required:
                raise DeviceError("device=cuda was asked for, but onnxruntime found no GPU that it can use")
            log.warning("onnxruntime offers CUDA but found no GPU that it can use: computing on the CPU")
            self.device = "cpu"
        return _OrtGraph(session)

    def _providers(self) -> list[str]:
        return ([CUDA] if self.device == "cuda" else []) + ["CPUExecutionProvider"]

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core
        options.log_severity_level = 3  # below: warnings of sizes that it infers wrongly behind Attention
        return options


class _OrtGraph:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = [node.name for node in session.get_inputs()]
        self.outputs = [node.name for node in session.get_outputs()]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        return self._session.run(list(outputs), dict(feeds))  # type: ignore[no-any-return] # onnxruntime is untyped
