"""A request that was checked and planned, on its way through the scheduler: what it costs, and how it runs."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from attention_server.domain.call import CallContext
from attention_server.domain.messages import Request, Response, Result
from attention_server.errors import AttentionServiceError, Cancelled, InvalidRequest
from attention_server.inference.engine.protocol import IdleSlots, Run
from attention_server.inference.input_profile import InputProfile
from attention_server.inference.model import LoadedModel
from attention_server.inference.plan_cache import CachedPlan
from attention_server.inference.preprocess import PreparedInput
from attention_server.scheduling.scheduler import Job, Scheduler

T = TypeVar("T")

Answers = Callable[[], list[Response | Exception]]

WORTH_SPREADING = 0.001  # seconds: what takes less is done before another thread has begun


@dataclass(slots=True)
class Part:
    """Sequences of one request that run together.

    Attributes:
        places: of them among what was prepared.
        prepared: they.
        sizes: of each of them.
        count: how many sequences they are.
    """

    places: list[int]
    prepared: list[PreparedInput]
    sizes: InputProfile
    count: int

    def add(self, place: int, prepared: PreparedInput) -> None:
        """Add one, or a batch."""
        self.places.append(place)
        self.prepared.append(prepared)
        self.count += prepared.batch

    @property
    def cost(self) -> float:
        """The seconds that they take, before correction."""
        return self.sizes.alone if self.count == 1 else self.sizes.alone * self.sizes.spared * self.count

    @property
    def size(self) -> int:
        """The bytes that they hold, and that their answers will have."""
        return (self.sizes.answered + self.sizes.held) * self.count


@dataclass(slots=True, eq=False)
class AttendJob:
    """One request, and what its answer takes.

    Attributes:
        request: as sent.
        model: what answers.
        asked: what it is asked for.
        prepared: its sequences, and batches, checked.
        sizes: of a sequence of each.
        call: who waits for it.
        parts: what of it runs together.
        cost: the seconds that it takes in one slot, as predicted.
    """

    request: Request
    model: LoadedModel
    asked: CachedPlan
    prepared: list[PreparedInput]
    sizes: list[InputProfile]
    call: CallContext
    parts: list[Part] = field(init=False)
    cost: float = field(init=False)

    def __post_init__(self) -> None:
        self.parts = _parts(self.prepared, self.sizes)
        self.cost = sum([part.cost for part in self.parts]) * self.asked.correction.factor

    def work(self, scheduler: Scheduler) -> "Job[AttendJob, Response]":
        """Return what the scheduler has to know."""
        self.call.record.mark_submitted()
        first = self.sizes[0]
        alone = len(self.sizes) == 1 and first.kind is not None
        return Job(
            payload=self,
            run=lambda subjects: _answer(subjects, scheduler),
            deadline=self.call.deadline,
            caller=self.call.caller,
            cost=self.cost,
            size=sum([part.size for part in self.parts]),
            batch_key=(self.asked, first.kind) if alone else None,
            max_batch=first.most if alone else 1,
            count=self.prepared[0].batch if alone else 1,
        )

    def answer(self, part: Part, run: Run) -> Callable[[], list[Result]]:
        """Compute sequences that run together; see `LoadedModel.answer`, also for what it raises."""
        if part.count == 1 and part.prepared[0].part is None:
            return self.model.answer(part.prepared, self.asked.plan, run)
        compute = partial(self.model.answer, part.prepared, self.asked.plan, run)
        return partial(self._of_one, part, self._of_one(part, compute))

    def _of_one(self, part: Part, compute: Callable[[], T]) -> T:
        """Compute something of sequences that run together; what is wrong is said of the one that is at fault."""
        try:
            return compute()
        except InvalidRequest as error:
            raise self._fault(part, error) from error

    def _fault(self, part: Part, error: InvalidRequest) -> InvalidRequest:
        """Return what is wrong with the one of several that is at fault, and not with the one that came first."""
        if part.count == 1:
            return error.of_part(part.prepared[0].part)
        for prepared in part.prepared:
            for each in prepared.cut(1):
                try:
                    self.model.answer([each], self.asked.plan, Run())()
                except InvalidRequest as found:
                    return found.of_part(each.part)
        return error.of_part(None)  # together only

    def response(self, results: Sequence[Result]) -> Response:
        """Put the answer together."""
        return Response(self.model.name, self.model.version, tuple(results), self.request.token_offsets)


def _answer(subjects: Sequence[AttendJob], helpers: IdleSlots) -> Answers:
    """Compute the answer of one request, or of several of one sequence each and of one kind together."""
    for each in subjects:
        each.call.record.mark_running()
    try:
        if len(subjects) > 1:
            return _answer_together(subjects)
        answer = _answer_one(subjects[0], helpers)
    finally:
        for each in subjects:
            each.call.record.mark_computed()
    return lambda: [answer()]


def _answer_one(subject: AttendJob, helpers: IdleSlots | None) -> Callable[[], Response]:
    call, run = subject.call, Run(helpers)
    call.add_run(run)
    try:
        if subject.cost < WORTH_SPREADING:
            parts = [_answer_part(subject, run, part) for part in subject.parts]
        else:
            parts = run.spread(partial(_answer_part, subject, run), subject.parts)
    except Cancelled:
        call.raise_if_ended()  # perhaps it was the time that ran out
        raise
    finally:
        call.remove_run(run)
    return partial(_put_together, subject, parts)


def _answer_part(subject: AttendJob, run: Run, part: Part) -> Callable[[], list[Result]]:
    subject.call.raise_if_ended()  # a slot is not held for a caller who has gone
    begun = time.perf_counter()
    results = subject.answer(part, run)
    if not run.was_helped:
        subject.asked.correction.learn(part.cost, time.perf_counter() - begun)
    return results


def _put_together(subject: AttendJob, parts: Sequence[Callable[[], list[Result]]]) -> Response:
    subject.call.record.mark_settled()
    results: list[Result | None] = [None] * len(subject.prepared)
    for part, found in zip(subject.parts, parts, strict=True):
        for place, result in zip(part.places, found(), strict=True):
            results[place] = result
    return subject.response(results)  # type: ignore[arg-type] # every place is in one part


def _answer_together(subjects: Sequence[AttendJob]) -> Answers:
    """Answer those whose callers are still there; where that fails, each by itself: the fault is one's."""
    there = [each for each in subjects if not each.call.is_cancelled]
    first, run = subjects[0], Run(callers=len(there))
    for each in there:
        each.call.add_run(run)
    results: Callable[[], list[Result]] = list
    try:
        if there:
            results = first.model.answer([each.prepared[0] for each in there], first.asked.plan, run)
    except AttentionServiceError:
        pass
    finally:
        for each in there:
            each.call.remove_run(run)

    def answers() -> list[Response | Exception]:
        for each in subjects:
            each.call.record.mark_settled()
        try:
            found = dict(zip(there, results(), strict=False))
        except AttentionServiceError:
            found = {}
        return [each.response([found[each]]) if each in found else _answer_or_error(each) for each in subjects]

    return answers


def _answer_or_error(subject: AttendJob) -> Response | Exception:
    record = subject.call.record
    record.mark_running()
    try:
        answer = _answer_one(subject, None)
        record.mark_computed()
        return answer()
    except Exception as error:  # noqa: BLE001 # it is this request's alone
        return error


def _parts(prepared: list[PreparedInput], sizes: list[InputProfile]) -> list[Part]:
    """Put sequences of one kind together, as many as pay."""
    parts: list[Part] = []
    growing: dict[Hashable, Part] = {}
    for place, (one, each) in enumerate(zip(prepared, sizes, strict=True)):
        part = None if each.kind is None else growing.get(each.kind)
        if part is not None and part.count + one.batch <= each.most:
            part.add(place, one)
            continue
        part = Part([place], [one], each, one.batch)
        parts.append(part)
        if each.kind is not None:
            growing[each.kind] = part
    return parts
