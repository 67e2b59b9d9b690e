"""One run, from its input to its output; the only place where the parts meet.

source -> (rows) -> scorer -> (engine) -> sink, shard by shard, with the journal beside it.
"""

import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn

import grpc
from attention_client import AttentionClient, AttentionError
from attention_proto.masks import Causal

from attention_batch.engines.client import ClientEngine
from attention_batch.engines.processes import Workers, slots
from attention_batch.errors import ExitStatus, Refused, ScoringError, Stopped, TooManyErrors
from attention_batch.output import journal as journals
from attention_batch.output.journal import Journal
from attention_batch.output.sink import (
    FORMS,
    Counts,
    Form,
    Layout,
    PartWriter,
    assemble,
    assemble_errors,
    part,
    part_paths,
    store,
)
from attention_batch.progress import Display, Tally, display, event
from attention_batch.readers import source as sources
from attention_batch.readers.fields import Fields
from attention_batch.readers.source import STREAM, InputFile, Shard, Source
from attention_batch.retry import Patience
from attention_batch.scorer import Engine, Message, Outcome, Question, Scorer, digest, pack
from attention_batch.spec import resolve

if TYPE_CHECKING:
    from attention_batch.engines.worker import Task

LARGE = 2**24  # bytes of input: what has less is done before other processes have begun

OpenPart = Callable[[int], AbstractContextManager[PartWriter]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to score, and how.

    Attributes:
        input: a file, a folder, a pattern of files, or `-`.
        output: a file, or `-`.
        model, version: by what; version 0 is the default one.
        outputs: what to write; see `attention_batch.spec`.
        columns: field -> the input's column, where they have other names.
        causal: the mask of every sequence.
        engine: `client` asks a service, `local` computes here, `ray` on a cluster.
        target, token, credentials: of the service: where it is, who calls, and how it is spoken to.
        timeout, patience: seconds for one message, and seconds to wait for a service that does not answer.
        models: the repository's folder, of the other engines; None for the embedded one.
        shard_rows: the most rows of a shard.
        max_errors: stop when more rows have failed; None for never.
        restart: whether to forget what an earlier run did.
    """

    input: str
    output: str
    model: str
    version: int = 0
    outputs: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    causal: Causal = "none"
    engine: Literal["client", "local", "ray"] = "client"
    target: str = "127.0.0.1:50051"
    token: str | None = field(default=None, repr=False)
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    timeout: float = 120.0
    patience: float = 300.0
    models: Path | None = None
    shard_rows: int = 4096
    max_errors: int | None = None
    restart: bool = False


@dataclass(frozen=True)
class Plan:
    """What a job comes to, once its input and its model have been looked at.

    Attributes:
        workers: processes that have begun; None until there is enough for several.
    """

    job: Job
    source: Source
    fields: Fields
    question: Question
    layout: Layout
    patience: Patience
    workers: Workers | None

    @property
    def subject(self) -> dict[str, Any]:
        """What must be the same for a later run to go on where this one ended."""
        job = self.job
        return {
            "input": [[file.path, file.size, file.modified_ns] for file in self.source.files],
            "model": self.question.model,
            "model version": self.question.version,
            "model manifest": self.question.manifest,
            "outputs": [dict(spec) for spec in job.outputs],
            "columns": self.fields.columns,
            "causal": job.causal,
            "shard rows": job.shard_rows,
        }


def run(job: Job, stdin: BinaryIO, stdout: BinaryIO) -> ExitStatus:
    """Score an input.

    Returns:
        Whether all rows have an answer.

    Raises:
        ScoringError: the run cannot begin, or cannot end; its `exit_status` says whether another can go on.
    """
    with ExitStack() as held:
        held.enter_context(_ended_cleanly(resumable=STREAM not in (job.input, job.output)))
        source = sources.find(job.input, stdin, _file(job))
        workers = _early_workers(job, source)
        if workers is not None:
            held.callback(workers.close)
        engine = held.enter_context(_engine(job))
        patience = Patience(job.patience, lambda why: event("waiting", reason=why))
        held.callback(patience.end)  # before its connection goes, which would look like a lost server
        plan = _plan(job, source, engine, patience, workers)
        output = _file(job)
        return _to_stream(plan, engine, stdout) if output is None else _to_file(plan, engine, output)


def _file(job: Job) -> Path | None:
    """Return the file that a job writes; None for standard output."""
    return None if job.output == STREAM else Path(job.output)


def _early_workers(job: Job, source: Source) -> Workers | None:
    """Begin processes for an input that is surely enough for several, while its model is still looked for."""
    if job.engine != "local" or job.output == STREAM or not source.files or (source.work or 0) < LARGE:
        return None
    try:
        processes = slots()
    except ModuleNotFoundError:
        return None  # what is missing is said by the engine
    return Workers(processes) if processes > 1 else None


def _plan(job: Job, source: Source, engine: Engine, patience: Patience, workers: Workers | None) -> Plan:
    try:
        model = patience.ask(lambda: engine.model(job.model, job.version))
    except AttentionError as error:
        raise Refused(str(error)) from error
    columns, id_type = source.columns(job.columns)
    fields = Fields(columns, id_type, job.causal)
    outputs = resolve(job.outputs, model.manifest, reads_text=fields.reads_text)
    question = Question(model.name, model.version, digest(model), outputs)
    return Plan(job, source, fields, question, Layout(_form(job.output), outputs.columns, id_type), patience, workers)


def _form(output: str) -> Form:
    if output == STREAM:
        return "jsonl"
    form = FORMS.get(Path(output).suffix.lower())
    if form is None or Path(output).is_dir():
        raise Refused(f"{output}: must be a file whose name ends in {', '.join(FORMS)}, or - for standard output")
    return form


@contextmanager
def _engine(job: Job) -> Iterator[Engine]:
    if job.engine == "client":
        with AttentionClient(job.target, timeout=job.timeout, token=job.token, credentials=job.credentials) as client:
            yield ClientEngine(client)
        return
    try:
        from attention_batch.engines.local import LocalEngine  # noqa: PLC0415 # needs the server's extra
    except ModuleNotFoundError as missing:
        raise Refused(
            f"--engine {job.engine} needs {missing.name}: pip install 'attention-service[batch,server]'"
        ) from missing
    yield LocalEngine(job.models)


def _to_stream(plan: Plan, engine: Engine, stdout: BinaryIO) -> ExitStatus:
    """Write JSON lines as they come, and dead letters to standard error. Nothing is kept, so nothing can be resumed."""

    @contextmanager
    def opened(_: int) -> Iterator[PartWriter]:
        yield PartWriter(stdout, sys.stderr.buffer, plan.layout)
        stdout.flush()

    tally = Tally(plan.source.work)
    with _shown(tally) as show:
        for shard, counts in _scored_here(plan, engine, plan.source.shards(plan.job.shard_rows), opened, tally, show):
            tally.finish_shard(shard.work, counts)
    return _status(tally)


def _to_file(plan: Plan, engine: Engine, output: Path) -> ExitStatus:
    """Write a file of all shards; what is done is kept, and what an earlier run has done is not done again."""
    folder = journals.folder_of(output)
    resumable = bool(plan.source.files) and (folder / journals.JOURNAL).exists()
    if output.exists() and not plan.job.restart and not resumable:
        raise Refused(f"{output} is there, and no run that can be resumed wrote it; --restart replaces it")
    with journals.locked(folder):
        if plan.job.restart or not plan.source.files:
            journals.start_over(folder, output)
        journal = Journal(folder, plan.subject)
        tally = Tally(plan.source.work, before=journal.counts)
        _check_errors(plan.job, tally.failed)
        if journal.complete:
            return _complete_before(journal, output, tally)
        with _shown(tally) as show:
            _score(plan, engine, folder, journal, tally, show)
            _finish(plan, folder, journal, output)
    return _status(tally)


def _complete_before(journal: Journal, output: Path, tally: Tally) -> ExitStatus:
    if not output.exists():
        raise Refused(f"{output} was complete and has gone; --restart scores all rows again")
    journal.tidy()
    with _shown(tally):
        return _status(tally)


def _score(plan: Plan, engine: Engine, folder: Path, journal: Journal, tally: Tally, show: Display) -> None:
    """Score the shards that are not done, and enter each in the journal."""

    def pending() -> Iterator[Shard]:
        for shard in plan.source.shards(plan.job.shard_rows):
            if shard.index not in journal.done:
                yield shard
            else:
                tally.work += shard.work

    def opened(shard: int) -> AbstractContextManager[PartWriter]:
        return part(folder, shard, plan.layout)

    shards = pending()
    in_processes = plan.job.engine == "local" and plan.source.files
    first = list(itertools.islice(shards, engine.workers if in_processes else 0))
    shards = itertools.chain(first, shards)
    if plan.job.engine == "ray":
        done = _on_ray(plan, shards, folder)
    elif len(first) > 1:
        done = _by_processes(plan, shards, folder, len(first), tally, show)
    else:
        done = _scored_here(plan, engine, shards, opened, tally, show)
    for shard, counts in done:
        journal.enter(shard.index, counts)
        tally.finish_shard(shard.work, counts)
        show.show(tally)
        _check_errors(plan.job, tally.failed)


def _scored_here(
    plan: Plan, engine: Engine, shards: Iterator[Shard], opened: OpenPart, tally: Tally, show: Display
) -> Iterator[tuple[Shard, Counts]]:
    """Yield shards whose parts are written. What the next one reads is under way while the last one is written."""
    scorer = Scorer(engine, plan.question, plan.patience)
    begun: dict[int, Shard] = {}

    def messages() -> Iterator[Message]:
        for shard in shards:
            begun[shard.index] = shard
            yield from pack(shard.index, plan.source.read(shard, plan.fields))

    with closing(scorer.score(messages())) as answers:
        for message, first in answers:
            with opened(message.shard) as writer:
                for outcomes in itertools.chain([first], _of_shard(message, answers)):
                    writer.add(outcomes)
                    tally.part = writer.counts
                    show.show(tally)
                    _check_errors(plan.job, tally.failed)
            scorer.confirm()
            yield begun.pop(message.shard), writer.counts


def _of_shard(message: Message, answers: Iterator[tuple[Message, list[Outcome]]]) -> Iterator[list[Outcome]]:
    """Yield the further outcomes of a message's shard."""
    while not message.last:
        message, outcomes = next(answers)
        yield outcomes


def _by_processes(
    plan: Plan, shards: Iterator[Shard], folder: Path, processes: int, tally: Tally, show: Display
) -> Iterator[tuple[Shard, Counts]]:
    workers = plan.workers or Workers(processes)
    runs = sources.in_runs(plan.source, shards, processes)
    with closing(workers.scored(_task(plan), runs, folder)) as done:
        for each in done:
            if isinstance(each, Counts):
                tally.part = each
                show.show(tally)
                _check_errors(plan.job, tally.failed)
            else:
                yield each


def _on_ray(plan: Plan, shards: Iterator[Shard], folder: Path) -> Iterator[tuple[Shard, Counts]]:
    try:
        from attention_batch.engines import ray as engine_ray  # noqa: PLC0415 # an extra
    except ModuleNotFoundError as missing:
        raise Refused(f"--engine ray needs {missing.name}: pip install 'attention-service[batch,ray]'") from missing
    for shard, output, errors, counts in engine_ray.scored(_task(plan), shards):
        store(folder, shard.index, output, errors)
        yield shard, counts


def _task(plan: Plan) -> "Task":
    from attention_batch.engines.worker import Task  # noqa: PLC0415 # needs the server's extra

    return Task(plan.source.files, plan.fields, plan.question, plan.layout, plan.job.models)


def _finish(plan: Plan, folder: Path, journal: Journal, output: Path) -> None:
    """Make one file of all parts, if they are of the input as it still is."""
    for file in plan.source.files:
        if InputFile.at(file.path) != file:
            raise Refused(f"{file.path} has changed while it was read; --restart scores it as it is now")
    parts = [part_paths(folder, shard) for shard in sorted(journal.done)]
    assemble_errors([errors for _, errors in parts], journals.errors_of(output))
    assemble([part for part, _ in parts], output, plan.layout)
    journal.finish()


def _check_errors(job: Job, failed: int) -> None:
    if job.max_errors is not None and failed > job.max_errors:
        raise TooManyErrors(f"{failed} rows failed, more than --max-errors {job.max_errors}")


def _status(tally: Tally) -> ExitStatus:
    return ExitStatus.WITH_FAILED_ROWS if tally.failed else ExitStatus.COMPLETE


@contextmanager
def _shown(tally: Tally) -> Iterator[Display]:
    """Show progress, and how it ended."""
    with display() as shown:
        try:
            yield shown
        except KeyboardInterrupt:
            shown.end(tally, "interrupted")
            raise
        except (ScoringError, OSError):
            shown.end(tally, "stopped")
            raise
        shown.end(tally, "complete")


@contextmanager
def _ended_cleanly(*, resumable: bool) -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, and say of both, and of what the system refuses, what comes then."""
    goes_on = "; the same command goes on" if resumable else ""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"interrupted{goes_on}") from error
    except OSError as error:
        mended = f"{goes_on} when that is mended" if resumable else ""
        raise Stopped(f"{error.strerror or error}{mended}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
