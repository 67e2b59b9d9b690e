"""The engine that runs graphs with onnxruntime, on a CPU or with CUDA."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import onnxruntime as ort
import structlog

from attention_server.domain.messages import Array
from attention_server.errors import Cancelled
from attention_server.inference.engine.protocol import Device, DeviceError, Graph, Run

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
DEVICES = {CPU: "cpu", CUDA: "cuda"}

# The smallest ONNX model, y = -x: its session tells which provider it runs on.
PROBE = bytes.fromhex(
    "080812003a360a0b0a017812017922034e6567120570726f62655a0f0a0178120a0a08080112040a020801620f0a0179120a0a080801"
    "12040a02080142040a00100d"
)

log = structlog.get_logger()


def provider_options(provider: str) -> dict[str, str]:
    """Return onnxruntime's options of an execution provider.

    TF32, which CUDA uses by default, rounds float32 factors to 10 bits: weights would be off by a thousandth.
    """
    return {"use_tf32": "0"} if provider == CUDA else {}


class OnnxRuntime:
    """An engine that opens graphs with onnxruntime.

    Args:
        device: `auto` takes CUDA where onnxruntime offers it and a session runs on it, else the CPU.
        threads: CPU threads of one run.

    Raises:
        DeviceError: the device is `cuda`, and CUDA cannot be used.
    """

    def __init__(self, device: Device, threads: int) -> None:
        self._threads = threads
        self._providers = [CPU]
        self.device: Literal["cpu", "cuda"] = "cpu"
        if device == "cpu":
            return
        obstacle = self._obstacle_to_cuda()
        if not obstacle:
            self._providers.insert(0, CUDA)
            self.device = "cuda"
        elif device == "cuda":
            raise DeviceError(f"device=cuda was asked for, but {obstacle}; use device=cpu, or auto")
        else:
            log.info("computing on the CPU", reason=obstacle)

    def open(self, content: bytes) -> Graph:
        """Open an ONNX file.

        Raises:
            DeviceError: the GPU that the engine began with takes no more graphs.
        """
        session = self._session(content, self._providers)
        if self._providers[0] not in session.get_providers():
            raise DeviceError("onnxruntime opened it on the CPU alone: CUDA cannot be used any more")
        return OnnxGraph(session)

    def _obstacle_to_cuda(self) -> str:
        """Return why CUDA cannot be used; empty where a session runs on it."""
        if CUDA not in ort.get_available_providers():
            return "this onnxruntime offers no CUDA (that of attention-service[server-gpu] does)"
        try:
            session = self._session(PROBE, [CUDA])
        except Exception as error:  # noqa: BLE001 # a broken driver raises many types
            return f"onnxruntime cannot start CUDA: {error}"
        return "" if CUDA in session.get_providers() else "onnxruntime finds no GPU that it can use"

    def _session(self, content: bytes, providers: list[str]) -> ort.InferenceSession:
        # With a fallback, a session that fails on the GPU, as for want of memory, would be made on the CPU.
        return ort.InferenceSession(
            content,
            self._options(providers),
            providers=[(name, provider_options(name)) for name in providers],
            enable_fallback=0,
        )

    def _options(self, providers: Sequence[str]) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core
        # Data outside the graph's file would not be verified by a hash: its folder is set to one that cannot exist.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if CUDA not in providers:
            # One arena of all graphs: a graph computes in memory that the one before left in the processor's caches.
            _share_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
            options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
            options.enable_mem_pattern = False  # one block for all tensors of a run finds less of that memory
        options.log_severity_level = 3  # lower levels warn of shapes that are inferred wrongly behind Attention
        return options


@cache
def _share_arena() -> None:
    """Register the arena that the CPU's sessions of this process allocate tensors from; their weights are outside."""
    about = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(about, ort.OrtArenaCfg({}))


class OnnxGraph:
    """A graph in a session of onnxruntime."""

    def __init__(self, session: ort.InferenceSession) -> None:
        # The method behind `InferenceSession.run`, which looks at each feed for OrtValues and captured graphs, never
        # fed here, for as long as a small graph takes; and falls back to the CPU for good, unseen, when a GPU fails.
        self._run = getattr(session, "_sess", session).run
        self.inputs = {node.name: tuple(node.shape) for node in session.get_inputs()}
        self.outputs = {node.name: tuple(node.shape) for node in session.get_outputs()}
        self.nodes = _nodes(session)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Compute outputs; see `Graph.run`."""
        try:
            return self._run(outputs, feeds, run.of_engine or _options_of(run))  # type: ignore[no-any-return] # untyped
        except Exception as error:
            _raise_if_ended(run, error)
            raise

    def run_path(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Compute outputs; onnxruntime is asked for the nodes on the path alone, and 1.32 runs all on the CPU."""
        options = _new_options(run)
        options.only_execute_path_to_fetches = True
        try:
            return self._run(outputs, feeds, options)  # type: ignore[no-any-return] # onnxruntime is untyped
        except Exception as error:
            _raise_if_ended(run, error)
            raise


def _raise_if_ended(run: Run, error: Exception) -> None:
    """Raise Cancelled where a graph failed because its run was ended."""
    if run.ended:
        raise Cancelled("the caller has gone") from error


def _nodes(session: ort.InferenceSession) -> dict[str, Counter[str]]:
    """Count a session's nodes by device and operator."""
    counts: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        device = DEVICES.get(part.ep_name, part.ep_name)
        counts.setdefault(device, Counter()).update(node.op_type for node in part.get_nodes())
    return counts


def _options_of(run: Run) -> ort.RunOptions:
    """Make the options that a run's graphs share."""
    options = run.of_engine = _new_options(run)
    return options


def _new_options(run: Run) -> ort.RunOptions:
    """Make options of a run; setting `terminate` ends a graph between two nodes."""
    options = ort.RunOptions()
    if run.releases:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    run.on_end(lambda: setattr(options, "terminate", True))
    return options
