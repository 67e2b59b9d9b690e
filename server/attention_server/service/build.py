"""The composition of the core: settings -> engine -> memories -> repository -> scheduler -> service."""

from dataclasses import dataclass
from pathlib import Path

from attention_server.budget.account import Account
from attention_server.contexts.store import MemoryStore
from attention_server.domain.limits import Limits
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Engine
from attention_server.machine import usable_memory
from attention_server.repository.loader import Tried, load
from attention_server.repository.policy import Policy
from attention_server.repository.repository import Repository
from attention_server.repository.trial import Trials
from attention_server.scheduling.fair_queue import QueueLimits
from attention_server.scheduling.scheduler import Scheduler
from attention_server.service.service import Service
from attention_server.settings import MIB, Settings
from attention_server.telemetry.observer import Observer


@dataclass(frozen=True, slots=True)
class Core:
    """The parts of the core."""

    engine: Engine
    repository: Repository
    scheduler: Scheduler
    service: Service


def make_core(
    settings: Settings,
    observer: Observer | None = None,
    engine: Engine | None = None,
    trials: Trials | None = None,
) -> Core:
    """Compose the core; no model is loaded yet.

    Args:
        settings: the settings of the server.
        observer: observes requests; None for one that only counts.
        engine: the engine that opens the graphs; None for onnxruntime on the device of the settings.
        trials: tries each version before it is loaded; None to load it without.

    Raises:
        DeviceError: the device of the settings is not available.
    """
    engine = engine or OnnxRuntime(settings.device, threads=1)
    account = Account(settings.memory_budget_mib * MIB, settings.compute_slots)
    memories = MemoryStore(settings.memory_mib * MIB, lease=account.lease("kept memories"))
    repository = Repository(settings.models, engine, memories, _policy(settings), trials)
    waiting = QueueLimits(settings.max_queued, settings.max_wait, settings.max_queued_mib * MIB)
    scheduler = Scheduler(settings.compute_slots, waiting)
    service = Service(repository, scheduler, memories, _limits(settings), observer, account)
    return Core(engine, repository, scheduler, service)


def fork_trials(settings: Settings) -> Trials | None:
    """Fork the process that tries versions; None where the folder is loaded once, at the start.

    A process may fork before it has threads.
    """
    if settings.repository_mode == "none":
        return None
    return Trials.fork(_try, settings.max_load_seconds, usable_memory())


def _try(folder: Path, max_bytes: int) -> Tried:
    model = load(folder, OnnxRuntime("cpu", threads=1), max_bytes)
    return Tried(model.digest, model.device, model.costs)


def _policy(settings: Settings) -> Policy:
    return Policy(
        mode=settings.repository_mode,
        at_start=settings.load_model,
        default_versions=settings.default_version,
        max_version_bytes=settings.max_version_mib * MIB,
        grace=settings.grace,
        strict=settings.strict,
        trial_records=settings.trial_records,
        model_budget=settings.model_budget_mib and settings.model_budget_mib * MIB,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        sequences=settings.max_sequences,
        scores_bytes=settings.max_scores_mib * MIB,
        answer_bytes=settings.max_answer_mib * MIB,
        memory_ttl=settings.memory_ttl,
        outputs=settings.max_outputs,
        work_bytes=settings.max_work_mib * MIB,
        slots=settings.compute_slots,
    )
