"""onnxruntime, behind a protocol small enough to stand in for it: a graph runs, and that is all."""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import onnxruntime as ort
import structlog

from attention_server.domain.messages import Array
from attention_server.errors import Cancelled

S = TypeVar("S")
T = TypeVar("T")
Shape = tuple[int | str | None, ...]  # dimensions that vary have names, or none
Device = Literal["auto", "cpu", "cuda"]
CUDA = "CUDAExecutionProvider"
LEAST_ROWS = 128  # of a part of a sequence: less is not worth a hand-over

# The smallest ONNX model, y = -x, for a look at what a session runs on.
PROBE = bytes.fromhex(
    "080812003a360a0b0a017812017922034e6567120570726f62655a0f0a0178120a0a08080112040a020801620f0a0179120a0a080801"
    "12040a02080142040a00100d"
)

log = structlog.get_logger()


class DeviceError(RuntimeError):
    """The device asked for is not there."""


class IdleSlots(Protocol):
    """Slots beside a run's own, while nobody else wants them."""

    @property
    def idle_slots(self) -> int:
        """How many there are at this moment."""
        ...

    def spread(self, each: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Do something with each item, in these slots too."""
        ...


class Run:
    """One computation, perhaps of several graphs: another thread may end it, and idle slots may help.

    Args:
        helpers: the idle slots; None for none.
        callers: how many wait for it. When all have left it ends, between two nodes of a graph.
    """

    def __init__(self, helpers: IdleSlots | None = None, callers: int = 1) -> None:
        self.helpers = helpers
        self.options = ort.RunOptions()
        self.was_helped = False
        self._callers = [None] * callers  # a list, for to pop is atomic

    @property
    def ended(self) -> bool:
        """Whether nobody waits for it any more."""
        return not self._callers

    def drop_caller(self) -> None:
        """One caller waits no more."""
        self._callers.pop()
        if self.ended:
            self.options.terminate = True

    def spread(self, each: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Do something with each item, in idle slots too where there are any."""
        if len(items) == 1 or self.helpers is None or not self.helpers.idle_slots:
            return [each(item) for item in items]
        self.was_helped = True
        return self.helpers.spread(each, items)

    def parts(self, rows: int) -> list[slice]:
        """Cut the rows of one sequence into a part for each slot that can take one."""
        slots = 1 + (self.helpers.idle_slots if self.helpers else 0)
        count = max(1, min(slots, rows // LEAST_ROWS))
        ends = [rows * i // count for i in range(count + 1)]
        return [slice(*between) for between in itertools.pairwise(ends)]


class Graph(Protocol):
    """A computation with named inputs and outputs; `run` may be called from many threads."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """What `run` must be fed, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """What `run` can compute, by name."""
        ...

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        """Compute the outputs named, in their order.

        Raises:
            Cancelled: the run was ended meanwhile.
        """
        ...


class Engine:
    """Opens graphs on one device.

    Args:
        device: `auto` takes CUDA where onnxruntime offers it and a session really runs on it, else the CPU.
        threads: CPU threads of one run.

    Raises:
        DeviceError: `cuda` was asked for and cannot be used.
    """

    def __init__(self, device: Device, threads: int) -> None:
        self._threads = threads
        self._providers = ["CPUExecutionProvider"]
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
        """Open an ONNX file."""
        return _OrtGraph(ort.InferenceSession(content, self._options(), providers=self._providers))

    def _obstacle_to_cuda(self) -> str:
        """Return why CUDA cannot be used; empty when it can. To be offered is not enough: a session must run on it."""
        if CUDA not in ort.get_available_providers():
            return "this onnxruntime offers no CUDA (that of attention-service[server-gpu] does)"
        try:
            session = ort.InferenceSession(PROBE, self._options(), providers=[CUDA])
        except Exception as error:  # noqa: BLE001 # whatever is wrong with the driver, it means the CPU
            return f"onnxruntime cannot start CUDA: {error}"
        return "" if CUDA in session.get_providers() else "onnxruntime finds no GPU that it can use"

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core
        # Data outside the graph's file would be data whose hash nobody checked: its folder is one that cannot be.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        options.log_severity_level = 3  # below: warnings of sizes that it infers wrongly behind Attention
        return options


class _OrtGraph:
    def __init__(self, session: ort.InferenceSession) -> None:
        # What is behind `InferenceSession.run`, which looks at each feed for what is never fed here: values of its own
        # kind, and graphs captured on a GPU. That takes as long as a small graph. Nor does it turn to the CPU for good
        # when a GPU fails once, which nobody would notice.
        self._run = getattr(session, "_sess", session).run
        self.inputs = {node.name: tuple(node.shape) for node in session.get_inputs()}
        self.outputs = {node.name: tuple(node.shape) for node in session.get_outputs()}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], run: Run) -> list[Array]:
        try:
            return self._run(outputs, feeds, run.options)  # type: ignore[no-any-return] # onnxruntime is untyped
        except Exception as error:
            if run.ended:
                raise Cancelled("the caller has gone") from error
            raise
