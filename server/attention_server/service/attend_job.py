"""The job of one attention request: its predicted cost, its computation and its response."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from attention_server.contexts.memory import Memory, content_hash
from attention_server.contexts.store import MemoryStore
from attention_server.domain.call import CallContext
from attention_server.domain.messages import Request, Response, Result
from attention_server.errors import AttentionServiceError, Cancelled, InvalidRequest
from attention_server.inference.engine.protocol import IdleSlots, Run
from attention_server.inference.input_profile import InputProfile
from attention_server.inference.masks import mask_parts
from attention_server.inference.model import LoadedModel
from attention_server.inference.plan_cache import CachedPlan
from attention_server.inference.preprocess import PreparedInput
from attention_server.scheduling.fair_queue import PASS_BYTES
from attention_server.scheduling.job import Job, Share
from attention_server.scheduling.scheduler import Scheduler
from attention_server.service.baseline import NO_BASELINE, Baseline

T = TypeVar("T")

Finalizer = Callable[[], list[Response | Exception]]

MIN_SPREAD_SECONDS = 0.001  # a shorter request ends before another thread would begin


@dataclass(slots=True)
class Group:
    """Sequences of one request that run in one pass.

    Attributes:
        positions: positions of the sequences among the request's inputs.
        prepared: the prepared sequences, or batches of sequences.
        profiles: of each.
        count: number of sequences.
        rows: their query rows.
        shared_cost: predicted seconds that the group adds to a pass, before correction.
        size: bytes of the sequences and the answers.
        peak: bytes that it needs beside while it runs.
    """

    positions: list[int] = field(default_factory=list)
    prepared: list[PreparedInput] = field(default_factory=list)
    profiles: list[InputProfile] = field(default_factory=list)
    count: int = 0
    rows: int = 0
    shared_cost: float = 0.0
    size: int = 0
    peak: int = 0

    def add(self, position: int, prepared: PreparedInput, profile: InputProfile) -> None:
        """Add a sequence, or a batch of sequences."""
        self.positions.append(position)
        self.prepared.append(prepared)
        self.profiles.append(profile)
        batch = prepared.batch
        self.count += batch
        self.rows += batch * profile.queries
        self.shared_cost += batch * profile.seconds * profile.company.factor
        self.size += batch * (profile.answer_bytes + profile.input_bytes)
        self.peak += batch * profile.peak_bytes

    @property
    def cost(self) -> float:
        """Predicted seconds of a pass of the group alone, before correction."""
        return self.profiles[0].seconds if self.count == 1 else self.shared_cost

    def full_peak(self) -> int:
        """Return the bytes that a full pass of such sequences needs beside, or the group itself, if these are more."""
        if not self.peak:
            return 0
        if len(self.profiles) == 1:
            of_row = self.profiles[0].peak_bytes / self.profiles[0].queries
        else:
            of_row = max([profile.peak_bytes / profile.queries for profile in self.profiles])
        return max(self.peak, min(PASS_BYTES, int(of_row * self.profiles[0].company.max_rows)))


@dataclass(slots=True, eq=False)
class AttendJob:
    """One attention request, validated and planned.

    Attributes:
        request: the request.
        model: the leased model version.
        cached_plan: the plan of the request's outputs.
        prepared: the prepared sequences and batches.
        profiles: the profile of each.
        call: the context of the call.
        memories: keeps the sequences that go on behind a memory.
        memory_ttl: seconds to keep one that begins a prefix.
        baseline: subtracted from some outputs; the second half of the prepared sequences is behind it.
        groups: the sequences in groups that run as one batch each.
        cost: predicted seconds in one slot.
    """

    request: Request
    model: LoadedModel
    cached_plan: CachedPlan
    prepared: list[PreparedInput]
    profiles: list[InputProfile]
    call: CallContext
    memories: MemoryStore
    memory_ttl: float
    baseline: Baseline = NO_BASELINE
    groups: list[Group] = field(init=False)
    cost: float = field(init=False)

    def __post_init__(self) -> None:
        self.groups = groups = _group(self.prepared, self.profiles)
        cost = groups[0].cost if len(groups) == 1 else sum([group.cost for group in groups])
        self.cost = cost * self.cached_plan.correction.factor

    def to_job(self, scheduler: Scheduler) -> "Job[AttendJob, Response]":
        """Return the scheduler's job. Jobs with equal plans, each of sequences that may share a pass, may do so."""
        self.call.record.mark_submitted()
        group, company, is_single = self.groups[0], self.profiles[0].company, len(self.groups) == 1
        share, peak = None, group.peak if is_single else max([each.peak for each in self.groups])
        if is_single and company.kind is not None:
            share = Share(
                key=(self.cached_plan, company.kind),
                rows=group.rows,
                max_rows=company.max_rows,
                cost=group.shared_cost * self.cached_plan.correction.factor,
                bytes=peak,
            )
            peak = group.full_peak()
        return Job(
            payload=self,
            run=lambda jobs: _compute(jobs, scheduler),
            deadline=self.call.deadline,
            caller=self.call.caller,
            cost=self.cost,
            size=group.size if is_single else sum([each.size for each in self.groups]),
            peak=peak,
            share=share,
        )

    def compute(self, group: Group, run: Run) -> Callable[[], list[Result]]:
        """Compute a group; return the finalizer of its results.

        Raises:
            InvalidRequest: a sequence overflows, here or in the finalizer; the error names the sequence.
            Cancelled: the run was ended.
        """
        if group.count == 1 and group.prepared[0].part is None:
            return self.model.answer(group.prepared, self.cached_plan.plan, run)
        compute = partial(self.model.answer, group.prepared, self.cached_plan.plan, run)
        return partial(self._naming_part, group, self._naming_part(group, compute))

    def count_pass(self, sequences: Sequence[PreparedInput]) -> None:
        """Count a pass of sequences, of this job and of others, in this job's record."""
        rows = [each.queries * each.batch for each in sequences]
        self.call.record.passes.append((sum([each.batch for each in sequences]), sum(rows)))

    def response(self, results: Sequence[Result]) -> Response:
        """Return the response of all results, in the order of the inputs, with the memories of those that are kept.

        Raises:
            TooLarge, Full: the store has no room for one.
        """
        for each in self.prepared:
            if each.continuation is not None:
                results = [self._kept(*pair) for pair in zip(self.prepared, results, strict=True)]
                break
        if self.baseline.fields:
            results = self.baseline.subtract(results, self.cached_plan)
        told = tuple(results)
        request, model = self.request, self.model
        changes = request.ablate, request.score_temperature
        return Response(model.name, model.version, told, request.token_offsets, *changes)

    def _kept(self, prepared: PreparedInput, result: Result) -> Result:
        """Keep a sequence behind its memory, if asked; return its result with the new memory."""
        continuation, before = prepared.continuation, prepared.memory
        if continuation is None:
            return result
        self.memories.count_copied(continuation.copied)
        past = continuation.kept
        if past is None:
            return result
        past.write_tokens(prepared.tokens)
        model = self.model
        sent = [None if prepared.tokens is None else prepared.tokens.ids, prepared.query, *mask_parts(prepared.added)]
        ids = "" if before is None else before.content.hex()
        memory = Memory(
            id="",
            model=model.name,
            version=model.version,
            tensors={} if before is None else before.tensors,
            tokens=None if before is None else before.tokens,
            ttl=self.memory_ttl if before is None else self.memories.time_to_live(before),
            digest=model.digest,
            owner=self.call.owner,
            content=content_hash(model.name, model.version, [model.digest, f"extend {ids}", *sent]),
            storage_error=0.0 if before is None else before.storage_error,
            past=past,
        )
        kept = self.memories.put(memory)
        if kept.past is past:  # not where the same sequence was kept before
            continuation.hand_over()
        return result._replace(memory=replace(self.memories.describe(kept), tokens=()))

    def _naming_part(self, group: Group, function: Callable[[], T]) -> T:
        """Call a function of a group; name the sequence at fault in an InvalidRequest."""
        try:
            return function()
        except InvalidRequest as error:
            raise self._locate(group, error) from error

    def _locate(self, group: Group, error: InvalidRequest) -> InvalidRequest:
        """Return the error of the sequence at fault, found by computing each sequence of the group by itself."""
        if group.count == 1:
            return error.of_part(group.prepared[0].part)
        for prepared in group.prepared:
            for each in prepared.cut(1):
                try:
                    self.model.answer([each], self.cached_plan.plan, Run())()
                except InvalidRequest as found:
                    return found.of_part(each.part)
        return error.of_part(None)  # only the sequences together fail


def _group(prepared: list[PreparedInput], profiles: list[InputProfile]) -> list[Group]:
    """Group sequences that may share a pass, up to the size at which a larger pass gains nothing."""
    groups: list[Group] = []
    growing: dict[Hashable, Group] = {}
    for position, (one, profile) in enumerate(zip(prepared, profiles, strict=True)):
        company = profile.company
        group = None if company.kind is None else growing.get(company.kind)
        if group is None or group.rows + one.batch * profile.queries > company.max_rows:
            group = Group()
            groups.append(group)
            if company.kind is not None:
                growing[company.kind] = group
        group.add(position, one, profile)
    return groups


def _compute(jobs: Sequence[AttendJob], idle_slots: IdleSlots) -> Finalizer:
    """Compute one job, or a batch of jobs of one input and one kind; return the finalizer of the responses."""
    for job in jobs:
        job.call.record.mark_running()
    try:
        if len(jobs) > 1:
            return _compute_batch(jobs)
        finalize = _compute_one(jobs[0], idle_slots)
    finally:
        for job in jobs:
            job.call.record.mark_computed()
    return lambda: [finalize()]


def _compute_one(job: AttendJob, idle_slots: IdleSlots | None) -> Callable[[], Response]:
    call, run = job.call, Run(idle_slots)
    call.add_run(run)
    try:
        if job.cost < MIN_SPREAD_SECONDS:
            finalizers = [_compute_group(job, run, group) for group in job.groups]
        else:
            finalizers = run.map(partial(_compute_group, job, run), job.groups)
    except Cancelled:
        call.raise_if_ended()  # DeadlineExceeded where the deadline cancelled the run
        raise
    finally:
        call.remove_run(run)
    return partial(_finalize_one, job, finalizers)


def _compute_group(job: AttendJob, run: Run, group: Group) -> Callable[[], list[Result]]:
    job.call.raise_if_ended()  # an ended call does not hold a slot
    begun = time.perf_counter()
    results = job.compute(group, run)
    job.count_pass(group.prepared)
    if not run.was_helped:
        job.cached_plan.correction.learn(group.cost, time.perf_counter() - begun)
    return results


def _finalize_one(job: AttendJob, finalizers: Sequence[Callable[[], list[Result]]]) -> Response:
    job.call.record.mark_settled()
    results: list[Result | None] = [None] * len(job.prepared)
    for group, finalize in zip(job.groups, finalizers, strict=True):
        for position, result in zip(group.positions, finalize(), strict=True):
            results[position] = result
    return job.response(results)  # type: ignore[arg-type] # every position is in one group


def _compute_batch(jobs: Sequence[AttendJob]) -> Finalizer:
    """Compute the jobs of connected callers in one pass; the finalizer computes each that fails by itself."""
    connected = [job for job in jobs if not job.call.is_cancelled]
    first, run = jobs[0], Run(callers=len(connected))
    for job in connected:
        job.call.add_run(run)
    finalize: Callable[[], Sequence[Result | InvalidRequest]] = list
    sequences = [each for job in connected for each in job.prepared]
    try:
        if connected:
            begun = time.perf_counter()
            finalize = first.model.answer_each(sequences, first.cached_plan.plan, run)
            first.count_pass(sequences)
            cost = sum([job.groups[0].shared_cost for job in connected])
            first.cached_plan.correction.learn(cost, time.perf_counter() - begun)
    except AttentionServiceError:
        pass
    finally:
        for job in connected:
            job.call.remove_run(run)
    return partial(_finalize_batch, jobs, connected, finalize)


def _finalize_batch(
    jobs: Sequence[AttendJob],
    connected: Sequence[AttendJob],
    finalize: Callable[[], Sequence[Result | InvalidRequest]],
) -> list[Response | Exception]:
    for job in jobs:
        job.call.record.mark_settled()
    try:
        found = deque(finalize())
    except AttentionServiceError:
        found = deque()
    results: dict[AttendJob, list[Result]] = {}
    for job in connected if found else ():
        own = [found.popleft() for _ in job.prepared]
        answered = [each for each in own if not isinstance(each, InvalidRequest)]
        if len(answered) == len(own):
            results[job] = answered
    return [_response_or_error(job, results.get(job)) for job in jobs]


def _response_or_error(job: AttendJob, results: Sequence[Result] | None) -> Response | Exception:
    """Return the response of a job's results, or where there are none, of the job computed by itself; or its error."""
    try:
        if results is not None:
            return job.response(results)
        job.call.record.mark_running()
        finalize = _compute_one(job, None)
        job.call.record.mark_computed()
        return finalize()
    except Exception as error:  # noqa: BLE001 # the answer of this job alone
        return error
