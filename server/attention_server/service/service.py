"""The core that every protocol calls: check, plan, schedule, compute. One request in, one response out."""

from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TypeVar

from attention_proto.attention.v1.attention_pb2 import Model
from attention_proto.masks import Mask

from attention_server.domain.call import CallContext
from attention_server.domain.limits import Limits
from attention_server.domain.messages import IndexEntry, MemoryRequest, Request, Response, Sequence, Tokens
from attention_server.errors import Cancelled, DeadlineExceeded, InvalidRequest, NotFound, Unavailable
from attention_server.inference.contexts import Memory, MemoryState, MemoryStore, memory_id
from attention_server.inference.engine.protocol import Run
from attention_server.inference.input_profile import InputProfile
from attention_server.inference.model import LoadedModel
from attention_server.inference.plan_cache import CachedPlan
from attention_server.inference.preprocess import PreparedInput, Vectors, prepare_memory
from attention_server.repository.repository import Repository
from attention_server.scheduling.admission import AdmissionController
from attention_server.scheduling.cost_model import Size
from attention_server.scheduling.future import Future
from attention_server.scheduling.scheduler import Job, Scheduler, SchedulerState
from attention_server.service.attend_job import AttendJob
from attention_server.telemetry.observer import Observer
from attention_server.telemetry.statistics import VersionStatistics

S = TypeVar("S")
T = TypeVar("T")

# Threads that a transport has beside one for each request that can be running or queued: for what is refused at once.
SPARE_THREADS = 16


class Service:
    """Answers requests from the models of a repository."""

    def __init__(
        self,
        repository: Repository,
        scheduler: Scheduler,
        memories: MemoryStore,
        limits: Limits,
        observer: Observer | None = None,
    ) -> None:
        self._repository = repository
        self._memories = memories
        self._scheduler = scheduler
        self.limits = limits
        self.observer = observer or Observer()

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and warmed."""
        return self._repository.ready

    def attend(self, request: Request, call: CallContext) -> Response:
        """Answer a request in this thread, which waits for its turn no longer than the caller does.

        Raises:
            PermissionDenied: the caller has not the right to attend.
            InvalidRequest: the model cannot take it.
            NotFound: there is no such model, version or memory.
            TooLarge: it is over a limit.
            Unavailable: the queue is full, or too long for the caller's deadline; or models are still loading.
            DeadlineExceeded: the caller's time ran out.
            Cancelled: the caller has gone.
        """
        call.require("attend")
        call.raise_if_ended()
        with self._repository.lease(request.model, request.version) as model:
            return self._run(self._work(request, model, call), call)

    @property
    def admission(self) -> AdmissionController:
        """What is let in while more is asked for than can be computed."""
        return self._scheduler.admission

    def submit(
        self, request: Request, call: CallContext, admitted: Callable[[], None] | None = None
    ) -> "Future[Response]":
        """Check a request and hand it to the scheduler, which computes it while this thread goes on.

        Args:
            request: what is asked.
            call: who asks.
            admitted: called when it is let in, where it can wait for that: it is one of many of a stream.

        Raises:
            AttentionServiceError: as `attend`, as far as it can be told now; else the future holds it.
        """
        call.require("attend")
        call.raise_if_ended()
        lease = self._repository.lease(request.model, request.version)
        model = lease.__enter__()  # it outlasts this method: the answer's future gives it back
        try:
            future = self._scheduler.submit(self._work(request, model, call), admitted)
        except BaseException:
            lease.__exit__(None, None, None)
            raise
        future.add_done_callback(lambda _: lease.__exit__(None, None, None))
        if admitted is None:  # of a stream, what waits when its caller goes is looked at in its turn
            call.attach(future)
        return future

    def models(self) -> list[Model]:
        """Describe every model whose default version answers, at that version, ordered by name.

        Raises:
            Unavailable: models are still loading.
        """
        described = []
        for name in self._repository.names():
            with suppress(NotFound, Unavailable):  # it went meanwhile
                described.append(self.model(name))
        return described

    def model(self, name: str, version: int = 0) -> Model:
        """Describe one model.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: models are still loading.
        """
        with self._repository.lease(name, version) as model:
            return Model(
                name=model.name,
                version=model.version,
                versions=self._repository.versions(name),
                device=model.device,
                manifest=model.manifest,
            )

    def create_memory(self, request: MemoryRequest, call: CallContext) -> Memory:
        """Project a memory and keep it.

        Raises:
            AttentionServiceError: as `attend`; TooLarge when it alone is over the budget.
        """
        call.require("attend")
        with self._repository.lease(request.model, request.version) as model:
            call.record.set_target(model.name, model.version)
            key, value, tokens = prepare_memory(request, model.manifest, model.memory_reader)
            k, v = self._run(_remembering(model, key, value, tokens, call), call)
            id_ = memory_id(model.name, model.version, [model.digest, key, value, request.memory_text])
            ttl = request.ttl if request.ttl is not None else self.limits.memory_ttl
            memory = Memory(id_, model.name, model.version, k, v, tokens, ttl, model.digest)
            self._memories.put(memory)  # under the lease: what is put is forgotten with the version
        return memory

    def memory(self, model: str, id_: str, call: CallContext) -> Memory:
        """Return a memory.

        Raises:
            PermissionDenied: the caller has not the right to attend.
            NotFound: it is not kept.
        """
        call.require("attend")
        return self._memories.get(id_, model, field="id")

    def memories(self, model: str, call: CallContext) -> list[Memory]:
        """Return a model's memories, the most recently used first.

        Raises:
            PermissionDenied: the caller has not the right to attend.
            NotFound: there is no such model.
        """
        call.require("attend")
        with self._repository.lease(model):
            return self._memories.of(model)

    def delete_memory(self, model: str, id_: str, call: CallContext) -> None:
        """Forget a memory.

        Raises:
            PermissionDenied: the caller has not the right to attend.
            NotFound: it is not kept.
        """
        call.require("attend")
        self._memories.delete(id_, model)

    def seconds_left(self, memory: Memory) -> float:
        """Return how long a memory is kept if nobody uses it."""
        return self._memories.seconds_left(memory)

    def statistics(self, name: str = "", version: int = 0) -> list[VersionStatistics]:
        """Return what was asked of every version that answers, or of one model's, or of one.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: models are still loading.
        """
        found = []
        for each in [name] if name else self._repository.names():
            with self._repository.lease(each, version):
                versions = [version] if version else self._repository.versions(each)
            found += [self.observer.statistics.of(each, number) for number in versions]
        return found

    def state(self) -> tuple[SchedulerState, MemoryState]:
        """Return how full the scheduler and the memories are at this moment."""
        return self._scheduler.state(), self._memories.state()

    def index(self) -> list[IndexEntry]:
        """Return every version in the repository and its state at this moment, also while models are still loading."""
        return self._repository.index()

    def is_ready(self, name: str, version: int = 0) -> bool:
        """Return whether a model would answer now; version 0 is its default.

        Raises:
            NotFound: there is no such model or version.
        """
        return self._repository.is_ready(name, version)

    def load_model(self, name: str, call: CallContext) -> None:
        """Load or reload what lies in a model's folder; see `Repository.load_model`.

        Raises:
            PermissionDenied: the caller has not the right to change the repository.
            Unimplemented: the repository is not changed on request.
            InvalidRequest: nothing of it can be served, with the reasons.
            NotFound: there is no such folder.
        """
        call.require("repository")
        self._repository.load_model(name)

    def unload_model(self, name: str, call: CallContext) -> None:
        """Serve a model no more, and finish the requests that hold it; see `Repository.unload_model`.

        Raises:
            PermissionDenied: the caller has not the right to change the repository.
            Unimplemented: the repository is not changed on request.
            NotFound: nothing of it is loaded.
        """
        call.require("repository")
        self._repository.unload_model(name)

    def _run(self, work: Job[S, T], call: CallContext) -> T:
        """Run a work for its caller; an answer that comes after their deadline is none."""
        try:
            answer = self._scheduler.run(work, call.attach)
        except CancelledError as error:
            raise Cancelled("the caller has gone") from error
        finally:
            call.detach()
        if call.is_expired:
            raise DeadlineExceeded("the deadline passed while the request ran")
        return answer

    def _work(self, request: Request, model: LoadedModel, call: CallContext) -> Job[AttendJob, Response]:
        """Check a request, and plan it."""
        self.limits.check_outputs(len(request.outputs))
        count = sum([each.batch for each in request.inputs])
        call.record.set_target(model.name, model.version, count)
        self.limits.check_sequences(count, "inputs")
        asked = model.ask(request.outputs)
        prepared, sizes = self._prepare(request, model, asked)
        for each, size in zip(prepared, sizes, strict=True):
            call.record.queries += [size.queries] * each.batch
            call.record.keys += [size.keys] * each.batch
        return AttendJob(request, model, asked, prepared, sizes, call).work(self._scheduler)

    def _prepare(
        self, request: Request, model: LoadedModel, asked: CachedPlan
    ) -> tuple[list[PreparedInput], list[InputProfile]]:
        """Check every sequence; return them ready to compute."""
        if not request.inputs:
            raise InvalidRequest("send at least one sequence", field="inputs")
        prepared: list[PreparedInput] = []
        sizes: list[InputProfile] = []
        answered = work = 0
        for sequence in request.inputs:
            for ready, size in self._prepare_sequence(sequence, request.mask, model, asked):
                prepared.append(ready)
                sizes.append(size)
                work += size.work * ready.batch
                answered += size.answered * ready.batch
                self.limits.check_work(work)
                self.limits.check_answer(answered)
        return prepared, sizes

    def _prepare_sequence(
        self, sequence: Sequence, mask: Mask, model: LoadedModel, asked: CachedPlan
    ) -> list[tuple[PreparedInput, InputProfile]]:
        """Check a sequence; of several that came as one, say which is at fault."""
        try:
            return model.prepare(sequence, asked, mask, self._memories, self.limits)
        except InvalidRequest as error:
            if sequence.part is None:
                raise
            if sequence.batch > 1:
                for one in sequence.each():
                    self._prepare_sequence(one, mask, model, asked)
            raise error.of_part(sequence.part) from error


def _remembering(
    model: LoadedModel, key: Vectors | None, value: Vectors | None, tokens: Tokens | None, call: CallContext
) -> Job[None, tuple[Vectors, Vectors]]:
    def run(_: object) -> Callable[[], list[tuple[Vectors, Vectors]]]:
        running = Run()
        call.add_run(running)
        call.record.mark_running()
        try:
            made = [model.remember(key, value, tokens, running)]
        finally:
            call.remove_run(running)
            call.record.mark_computed()
        return lambda: made

    call.record.mark_submitted()
    length = len(tokens.ids) if tokens else 0 if key is None else len(key)
    size = sum(each.nbytes for each in (key, value) if each is not None)
    return Job(None, run, call.deadline, call.caller, model.costs.of(Size(length, 0)), 2 * size)
