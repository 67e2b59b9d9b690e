"""One run, from its input to its output: shards of a source go through an engine to parts, and parts to the output."""

import itertools
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from attention_client import AttentionClient, AttentionError
from attention_proto.attention.v1 import attention_pb2 as pb

from attention_batch.engines import inline
from attention_batch.engines.client import ClientEngine
from attention_batch.engines.processes import WorkerPool, slots
from attention_batch.errors import ExitStatus, Refused, ScoringError, Stopped, TooManyErrors
from attention_batch.interrupts import Interrupts
from attention_batch.output.assembly import assemble, assemble_errors
from attention_batch.output.journal import JOURNAL, Journal, errors_of, folder_of, locked, start_over, written_by
from attention_batch.output.sink import Counts, FinishedShard, PartWriter, open_part, part_paths
from attention_batch.plan import Plan, ScoringJob, make_plan
from attention_batch.progress import Display, Progress, display, write_event
from attention_batch.readers.selection import STREAM, open_source
from attention_batch.readers.source import InputFile, Shard, Source, reader_runs
from attention_batch.retry import RetryPolicy
from attention_batch.scorer import Engine, Scorer

LARGE = 2**24  # bytes of input; a smaller input is scored before worker processes have started


@dataclass(frozen=True)
class _Run:
    """A plan, and all that carries it out.

    Attributes:
        workers: processes started early; None for none.
        as_json: whether progress and summary are JSON lines on a terminal too.
    """

    plan: Plan
    engine: Engine
    retries: RetryPolicy
    workers: WorkerPool | None
    interrupts: Interrupts
    as_json: bool


def run(job: ScoringJob, stdin: BinaryIO, stdout: BinaryIO, *, as_json: bool = False) -> ExitStatus:
    """Score an input.

    Args:
        job: the options.
        stdin: the input, if the job's input is `-`.
        stdout: the output, if the job's output is `-`.
        as_json: whether progress and summary are JSON lines on a terminal too.

    Returns:
        COMPLETE, or WITH_FAILED_ROWS.

    Raises:
        ScoringError: the run cannot begin, or cannot end; its `exit_status` tells whether a later run can resume it.
    """
    interrupts = Interrupts()
    resumable = STREAM not in (job.input, job.output)
    with _ended_cleanly(interrupts, resumable=resumable), ExitStack() as held:
        output = job.output_file
        source = open_source(
            job.input, stdin, written_by(output) if output else (), lambda said: write_event("passed over", reason=said)
        )
        workers = _early_workers(job, source)
        if workers is not None:
            held.callback(workers.close)
        engine = held.enter_context(_engine(job))
        retries = RetryPolicy(job.patience, lambda why: write_event("waiting", reason=why))
        held.callback(retries.cancel)  # before the connection closes, which would otherwise be retried
        plan = make_plan(job, source, _model(job, engine, retries))
        running = _Run(plan, engine, retries, workers, interrupts, as_json)
        return _to_stream(running, stdout) if output is None else _to_file(running, output)


def _early_workers(job: ScoringJob, source: Source) -> WorkerPool | None:
    """Start worker processes for a large input before its model is loaded."""
    if job.engine != "local" or job.output == STREAM or not source.files or (source.work or 0) < LARGE:
        return None
    try:
        processes = slots()
    except ModuleNotFoundError:
        return None  # `_engine` refuses, with the name of the missing package
    return WorkerPool(processes) if processes > 1 else None


@contextmanager
def _engine(job: ScoringJob) -> Iterator[Engine]:
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


def _model(job: ScoringJob, engine: Engine, retries: RetryPolicy) -> pb.Model:
    try:
        return retries.call(lambda: engine.model(job.model, job.version))
    except AttentionError as error:
        raise Refused(str(error)) from error


def _to_stream(running: _Run, stdout: BinaryIO) -> ExitStatus:
    """Write JSON lines to standard output, and failed rows to standard error. Such a run cannot be resumed."""
    plan = running.plan

    @contextmanager
    def opened(_: int) -> Iterator[PartWriter]:
        yield PartWriter(stdout, sys.stderr.buffer, plan.layout)
        stdout.flush()

    progress = Progress(plan.source.work)
    shards = plan.source.shards(plan.job.shard_rows)
    with _shown(running, progress) as show, closing(_inline(running, shards, opened)) as steps:
        for each in _counted(running, steps, progress, show):
            progress.finish_shard(each.shard.work, each.counts)
    return _status(progress)


def _to_file(running: _Run, output: Path) -> ExitStatus:
    """Write one file. Finished shards are kept, and those of an earlier run are not scored again."""
    plan = running.plan
    folder = folder_of(output)
    resumable = bool(plan.source.files) and (folder / JOURNAL).exists()
    if output.exists() and not plan.job.restart and not resumable:
        raise Refused(f"{output} is there, and no run that can be resumed wrote it; --restart replaces it")
    with locked(folder):
        if plan.job.restart or not plan.source.files:
            start_over(folder, output)
        journal = Journal(folder, plan.fingerprint)
        progress = Progress(plan.source.work, before=journal.counts)
        _check_errors(plan.job, progress.failed)
        if journal.complete:
            return _complete_before(running, journal, output, progress)
        with _shown(running, progress) as show:
            _score(running, folder, journal, progress, show)
            _finish(plan, folder, journal, output)
            progress.errors = errors_of(output)
    return _status(progress)


def _complete_before(running: _Run, journal: Journal, output: Path, progress: Progress) -> ExitStatus:
    if not output.exists():
        raise Refused(f"{output} was complete and has gone; --restart scores all rows again")
    journal.remove_parts()
    progress.errors = errors_of(output)
    with _shown(running, progress):
        return _status(progress)


def _score(running: _Run, folder: Path, journal: Journal, progress: Progress, show: Display) -> None:
    """Score the shards that the journal does not have, and record each."""

    def pending() -> Iterator[Shard]:
        for shard in running.plan.source.shards(running.plan.job.shard_rows):
            if shard.index not in journal.done:
                yield shard
            else:
                progress.work += shard.work

    with closing(_scored(running, pending(), folder)) as steps:
        for shard, counts in _counted(running, steps, progress, show):
            journal.record(shard.index, counts)
            progress.finish_shard(shard.work, counts)
            show.show(progress)
            _check_errors(running.plan.job, progress.failed)


def _scored(running: _Run, shards: Iterator[Shard], folder: Path) -> Generator[FinishedShard | Counts]:
    """Score shards on the job's engine, in processes where it has several and there are several shards."""
    plan = running.plan
    if plan.job.engine == "ray":
        return _on_ray(plan, shards, folder)
    in_processes = plan.job.engine == "local" and plan.source.files
    first = list(itertools.islice(shards, running.engine.processes if in_processes else 0))
    shards = itertools.chain(first, shards)
    if len(first) > 1:
        workers = running.workers or WorkerPool(len(first))
        return workers.scored(plan.task(), reader_runs(plan.source, shards, len(first)), folder)
    return _inline(running, shards, lambda shard: open_part(folder, shard, plan.layout))


def _inline(running: _Run, shards: Iterator[Shard], opened: inline.OpenPart) -> Generator[FinishedShard | Counts]:
    plan = running.plan
    scorer = Scorer(running.engine, plan.spec, running.retries)
    return inline.scored(scorer, plan.source, plan.fields, shards, opened)


def _on_ray(plan: Plan, shards: Iterator[Shard], folder: Path) -> Generator[FinishedShard]:
    try:
        from attention_batch.engines import ray  # noqa: PLC0415 # an extra
    except ModuleNotFoundError as missing:
        raise Refused(f"--engine ray needs {missing.name}: pip install 'attention-service[batch,ray]'") from missing
    return ray.scored(plan.task(), shards, folder)


def _counted(
    running: _Run, steps: Iterator[FinishedShard | Counts], progress: Progress, show: Display
) -> Iterator[FinishedShard]:
    """Yield the finished shards among an engine's steps; show the counts of the parts under way."""
    for step in steps:
        running.interrupts.check()
        if isinstance(step, FinishedShard):
            yield step
        else:
            progress.under_way = step
            show.show(progress)
            _check_errors(running.plan.job, progress.failed)


def _finish(plan: Plan, folder: Path, journal: Journal, output: Path) -> None:
    """Assemble the output, if the input's files have not changed since the run began."""
    for file in plan.source.files:
        if InputFile.at(file.path) != file:
            raise Refused(f"{file.path} has changed while it was read; --restart scores it as it is now")
    parts = [part_paths(folder, shard) for shard in sorted(journal.done)]
    assemble_errors([errors for _, errors in parts], errors_of(output))
    assemble([part for part, _ in parts], output, plan.layout)
    journal.finish()


def _check_errors(job: ScoringJob, failed: int) -> None:
    if job.max_errors is not None and failed > job.max_errors:
        raise TooManyErrors(f"{failed} rows failed, more than --max-errors {job.max_errors}")


def _status(progress: Progress) -> ExitStatus:
    return ExitStatus.WITH_FAILED_ROWS if progress.failed else ExitStatus.COMPLETE


@contextmanager
def _shown(running: _Run, progress: Progress) -> Iterator[Display]:
    """Show progress, and at the end a summary with the run's status."""
    with display(as_json=running.as_json) as shown:
        try:
            with running.interrupts.as_interrupts():
                yield shown
        except KeyboardInterrupt:
            shown.end(progress, "interrupted")
            raise
        except (ScoringError, OSError):
            shown.end(progress, "stopped")
            raise
        shown.end(progress, "complete")


@contextmanager
def _ended_cleanly(interrupts: Interrupts, *, resumable: bool) -> Iterator[None]:
    """Turn interrupts and errors of the system into Stopped."""
    goes_on = "; the same command goes on" if resumable else ""
    try:
        with interrupts.handled(), interrupts.as_interrupts():
            yield
    except KeyboardInterrupt as error:
        raise Stopped(f"interrupted{goes_on}") from error
    except OSError as error:
        mended = f"{goes_on} when that is mended" if resumable else ""
        raise Stopped(f"{error.strerror or error}{mended}") from error
