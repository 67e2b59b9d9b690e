"""The core that every protocol calls: validate, plan, schedule, compute."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from attention_proto.attention.v1.attention_pb2 import Model

from attention_server.budget.account import Account, AccountState
from attention_server.contexts.memory import Memory
from attention_server.contexts.store import HeldMemories, MemoryState, MemoryStore
from attention_server.domain.call import CallContext
from attention_server.domain.index_entry import IndexEntry
from attention_server.domain.limits import Limits
from attention_server.domain.messages import (
    EmbeddingsRequest,
    MemoryDescription,
    MemoryRequest,
    Request,
    Response,
)
from attention_server.domain.residency import ResidencyState
from attention_server.domain.tokenization import Tokenization, TokenizeRequest
from attention_server.errors import NotFound, Unavailable
from attention_server.inference.model import LoadedModel
from attention_server.inference.preprocess import prepare_memory
from attention_server.repository.repository import Repository
from attention_server.scheduling.admission import AdmissionController
from attention_server.scheduling.future import Future
from attention_server.scheduling.job import Job
from attention_server.scheduling.scheduler import Scheduler, SchedulerState
from attention_server.service.attend_job import AttendJob
from attention_server.service.baseline import behind_baseline, without_baselines
from attention_server.service.embeddings import EmbeddingsJob, attention_request
from attention_server.service.memory_job import MemoryJob
from attention_server.service.preparation import prepare_request
from attention_server.service.submission import reserve, submit_after
from attention_server.service.tokenization import tokenize_job
from attention_server.telemetry.observer import Observer
from attention_server.telemetry.statistics import VersionStatistics

S = TypeVar("S")
T = TypeVar("T")

# Threads of a transport, beside one for each request that can be running or queued: for requests refused at once.
SPARE_THREADS = 16


class Service:
    """Answers requests from the models of a repository.

    Args:
        repository: the models.
        scheduler: computes the jobs.
        memories: keeps projected memories.
        limits: limits on one request.
        observer: observes requests; None for one that only counts.
        account: of the bytes of all requests; None for one without a limit.

    Attributes:
        account: of the bytes of all requests.
        limits: limits on one request.
        observer: observes requests.
    """

    def __init__(
        self,
        repository: Repository,
        scheduler: Scheduler,
        memories: MemoryStore,
        limits: Limits,
        observer: Observer | None = None,
        account: Account | None = None,
    ) -> None:
        self._repository = repository
        self._memories = memories
        self._scheduler = scheduler
        self.limits = limits
        self.observer = observer or Observer()
        self.account = account or Account()

    @property
    def ready(self) -> bool:
        """Whether the first load has ended, and there is a model; versions may have been refused."""
        return self._repository.serves

    @property
    def is_loading(self) -> bool:
        """Whether the first load has not ended."""
        return not self._repository.ready

    @property
    def admission(self) -> AdmissionController:
        """Admission control under sustained overload."""
        return self._scheduler.admission

    def submit(
        self, request: Request, call: CallContext, admitted: Callable[[], None] | None = None
    ) -> "Future[Response]":
        """Validate a request and submit its job; return the future of the response.

        Args:
            request: the request.
            call: the context of the call. Cancelling the call cancels the job.
            admitted: for a message of a stream: called when the job is in the queue; see `Scheduler.submit`.

        Raises:
            PermissionDenied: the caller lacks the right to attend.
            InvalidRequest: the model cannot take the request.
            NotFound: there is no such model, version or memory.
            TooLarge: the request is over a limit.
            Unavailable: the queue is full, or too long for the deadline; there is no room for the bytes of request and
                answer; or models are still loading.
            DeadlineExceeded: the deadline has passed.
            Cancelled: the caller has cancelled.
        """
        call.require("attend")
        call.raise_if_ended()
        # A message of a stream keeps its place until its turn, so that its stream can answer in order.
        return self._submit(
            request.model,
            request.version,
            lambda model, held: self._attend_job(request, model, held, call),
            admitted,
            call,
        )

    def submit_embeddings(self, request: EmbeddingsRequest, call: CallContext) -> "Future[Response]":
        """Validate a request for embeddings and submit its job; return the future of the response.

        The response has one output of each sequence: its embedding, [D].

        Raises:
            AttentionServiceError: as `submit`; InvalidRequest too for a model without embeddings.
        """
        call.require("attend")
        call.raise_if_ended()
        return self._submit(
            request.model,
            request.version,
            lambda model, held: self._attend_job(
                attention_request(request, model.manifest), model, held, call, EmbeddingsJob
            ),
            None,
            call,
        )

    def submit_tokenize(self, request: TokenizeRequest, call: CallContext) -> "Future[Tokenization]":
        """Submit the job of a request for tokens; return the future of these.

        Raises:
            AttentionServiceError: as `submit`, and Full: there is no room for as many tokens as characters. The
                future raises as `service.tokenization.tokenize`.
        """
        call.require("attend")
        call.raise_if_ended()

        def make_job(model: LoadedModel, _: HeldMemories) -> Job[TokenizeRequest, Tokenization]:
            call.record.set_target(model.name, model.version)
            return tokenize_job(request, model, self.limits, call)

        return self._submit(request.model, request.version, make_job, None, call, computes=False)

    def submit_memory(self, request: MemoryRequest, call: CallContext) -> "Future[Memory]":
        """Validate a request to keep a memory and submit its job; return the future of the memory.

        Raises:
            AttentionServiceError: as `submit`; the future raises TooLarge for a memory that alone is over the budget.
        """
        call.require("attend")
        call.raise_if_ended()
        return self._submit(
            request.model, request.version, lambda model, _: self._memory_job(request, model, call), None, call
        )

    def models(self) -> list[Model]:
        """Describe the default version of every served model, ordered by name.

        Raises:
            Unavailable: models are still loading.
        """
        described = []
        for name in self._repository.names():
            with suppress(NotFound, Unavailable):  # unloaded meanwhile
                described.append(self.model(name))
        return described

    def model(self, name: str, version: int = 0, *, words: bool = False) -> Model:
        """Describe one version of a model; version 0 is the default.

        Args:
            name: the model's.
            version: of the model.
            words: whether to tell the words of a closed vocabulary.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: models are still loading.
        """
        lease = self._repository.lease(name, version)
        with lease as model:
            return Model(
                name=model.name,
                version=model.version,
                versions=self._repository.versions(name),
                device=model.device,
                nodes=model.nodes,
                file_bytes=model.file_bytes,
                memory_bytes=model.tensor_bytes,
                evicted=not lease.is_resident,
                manifest=model.manifest,
                words=model.reader.words if words and model.reader else (),
                memory_words=model.memory_reader.words if words and model.memory_reader else (),
            )

    def memory(self, model: str, id_: str, call: CallContext) -> Memory:
        """Return a memory of the caller.

        Raises:
            PermissionDenied: the caller lacks the right to attend.
            NotFound: no such memory is kept.
        """
        call.require("attend")
        return self._memories.get(id_, model, field="id", owner=call.owner)

    def memories(self, model: str, call: CallContext) -> list[Memory]:
        """Return the caller's memories of a model, the most recently used first.

        Raises:
            PermissionDenied: the caller lacks the right to attend.
            NotFound: there is no such model.
        """
        call.require("attend")
        with self._repository.lease(model):
            return self._memories.of(model, call.owner)

    def delete_memory(self, model: str, id_: str, call: CallContext) -> None:
        """Delete a memory of the caller; requests that hold it finish.

        Raises:
            PermissionDenied: the caller lacks the right to attend.
            NotFound: no such memory is kept.
        """
        call.require("attend")
        self._memories.delete(id_, model, call.owner)

    def describe(self, memory: Memory) -> MemoryDescription:
        """Describe a memory as it is kept now."""
        return self._memories.describe(memory)

    def statistics(self, name: str = "", version: int = 0) -> list[VersionStatistics]:
        """Return the statistics of every served version, of one model's versions, or of one version.

        Raises:
            NotFound: there is no such model or version.
            Unavailable: models are still loading.
        """
        if name:
            return self._model_statistics(name, version)
        found = []
        for each in self._repository.names():
            with suppress(NotFound, Unavailable):  # unloaded meanwhile
                found += self._model_statistics(each, version)
        return found

    def state(self) -> tuple[SchedulerState, MemoryState, AccountState]:
        """Return the current load of the scheduler, of the memory store and of the account of bytes."""
        return self._scheduler.state(), self._memories.state(), self.account.state()

    def release_memory(self) -> None:
        """Free memory that the engine keeps of earlier long sequences: the graphs of one version free that of all."""
        with suppress(Unavailable):  # models are still loading
            for name in self._repository.names():
                for version in self._repository.versions(name):
                    with suppress(NotFound, Unavailable):
                        lease = self._repository.lease(name, version)
                        with lease as model:
                            if model.device == "cpu" and lease.is_resident:
                                model.release()
                                return

    def residency(self) -> ResidencyState:
        """Return which versions have their graphs in memory, and how often these were evicted and loaded again."""
        return self._repository.residency.state()

    def index(self) -> list[IndexEntry]:
        """Return every version of the repository with its current state, also while models are loading."""
        return self._repository.index()

    def is_ready(self, name: str, version: int = 0) -> bool:
        """Return whether a model version is served; version 0 is the default.

        Raises:
            NotFound: there is no such model or version.
        """
        return self._repository.is_ready(name, version)

    def load_model(self, name: str, call: CallContext) -> None:
        """Load or reload the versions in a model's folder; see `Repository.load_model`.

        Raises:
            PermissionDenied: the caller lacks the right to change the repository.
            Unimplemented: the repository is not changed on request.
            InvalidRequest: no version can be served; the message has the reasons.
            NotFound: there is no such folder.
        """
        call.require("repository")
        self._repository.load_model(name)

    def unload_model(self, name: str, call: CallContext) -> None:
        """Unload a model after the requests that hold it; see `Repository.unload_model`.

        Raises:
            PermissionDenied: the caller lacks the right to change the repository.
            Unimplemented: the repository is not changed on request.
            NotFound: no version of the model is loaded.
        """
        call.require("repository")
        self._repository.unload_model(name)

    def _model_statistics(self, name: str, version: int) -> list[VersionStatistics]:
        with self._repository.lease(name, version):
            versions = [version] if version else self._repository.versions(name)
        return [self.observer.statistics.of(name, number) for number in versions]

    def _submit(
        self,
        name: str,
        version: int,
        make_job: Callable[[LoadedModel, HeldMemories], Job[S, T]],
        admitted: Callable[[], None] | None,
        call: CallContext,
        *,
        computes: bool = True,
    ) -> "Future[T]":
        """Submit a job under leases of its model version, its bytes and its memories, which end with the job.

        A job that computes waits until the graphs of its version are in memory.
        """
        held = HeldMemories(self._memories, call.owner)
        lease = self._repository.lease(name, version)
        ends = [held.release, lease.release]
        try:
            job = make_job(lease.model, held)
            ends.append(reserve(job, self.account, call.lease))
            submit = self._scheduler.submit
            if lease.use() or not computes:
                future = submit(job, admitted)
            else:
                reload = self._repository.residency.reload(lease.version)
                future = submit_after(reload, lambda: submit(job, admitted), call, admitted)
        except BaseException:
            _call_all(ends)
            raise
        future.add_done_callback(lambda _: _call_all(ends))
        if admitted is None:  # a stream's message that is cancelled is looked at in its turn
            call.attach(future)
        return future

    def _attend_job(
        self,
        request: Request,
        model: LoadedModel,
        held: HeldMemories,
        call: CallContext,
        kind: type[AttendJob] = AttendJob,
    ) -> Job[AttendJob, Response]:
        """Validate and plan an attention request."""
        self.limits.check_outputs(len(request.outputs))
        count = sum([each.batch for each in request.inputs])
        call.record.set_target(model.name, model.version, count)
        self.limits.check_sequences(count, "inputs")
        outputs, baseline = without_baselines(request.outputs)
        cached_plan = model.plan(outputs, request.ablate, request.score_temperature)
        computed = behind_baseline(request, baseline, model, held)
        prepared, profiles = prepare_request(computed, model, cached_plan, held, self.limits)
        all_queries, all_keys = call.record.queries, call.record.keys
        for each, profile in zip(prepared, profiles, strict=True):
            if each.batch == 1:
                all_queries.append(profile.queries)
                all_keys.append(profile.keys)
            else:
                all_queries += [profile.queries] * each.batch
                all_keys += [profile.keys] * each.batch
        kept_in = (self._memories, self.limits.memory_ttl)
        return kind(request, model, cached_plan, prepared, profiles, call, *kept_in, baseline).to_job(self._scheduler)

    def _memory_job(self, request: MemoryRequest, model: LoadedModel, call: CallContext) -> Job[MemoryJob, Memory]:
        """Validate a memory request."""
        call.record.set_target(model.name, model.version)
        key, value, tokens = prepare_memory(request, model.manifest, model.reader, model.memory_reader, self.limits)
        ttl = request.ttl if request.ttl is not None else self.limits.memory_ttl
        return MemoryJob(request, model, key, value, tokens, ttl, call, self._memories).to_job()


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()
