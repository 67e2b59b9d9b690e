"""The settings: each is a flag, an `ATTENTION_*` variable and a line of `--help`."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from attention_proto.folder import NAME
from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024
PREFIX = "ATTENTION_"
CLIENT_VARIABLES = {"CA", "CERT", "KEY", "TARGET", "TLS", "TOKEN"}
SIMILAR = 0.8  # ratio of difflib
PROCESS_BYTES = 128 * MIB  # without models
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_QUOTAS = ((CGROUPS / "cpu.max",), (CGROUPS / "cpu/cpu.cfs_quota_us", CGROUPS / "cpu/cpu.cfs_period_us"))

ModelName = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
Version = Annotated[int, Field(ge=1, le=999_999_999)]


def embedded_models() -> Path:
    """Return the folder of the embedded models: inside the package, or in the checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "models"


def usable_cores() -> int:
    """Return the number of cores for this process: the cgroup's quota if there is one, else the affinity."""
    cores = len(os.sched_getaffinity(0))
    for files in CGROUP_QUOTAS:
        try:
            quota, period = map(int, " ".join(file.read_text() for file in files).split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0:  # version 1 has -1 for no quota
            return max(1, min(cores, quota // period))
    return cores


def memory_limits(groups: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Return the files that may limit this process's memory, for both versions of cgroups.

    These are the ones of its own groups and of all groups around them; inside a container, the ones at the root.

    Args:
        groups: the file that lists the process's groups, a line `ID:CONTROLLERS:PATH` each.
    """
    files = [CGROUPS / "memory.max", CGROUPS / "memory/memory.limit_in_bytes"]
    lines = groups.read_text().splitlines() if groups.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        is_second = not controllers
        if is_second or "memory" in controllers.split(","):
            root, name = (CGROUPS, "memory.max") if is_second else (CGROUPS / "memory", "memory.limit_in_bytes")
            group = root / path.lstrip("/")
            files += [each / name for each in (group, *group.parents) if each != root and each.is_relative_to(root)]
    return files


CGROUP_LIMITS = memory_limits()


def usable_memory() -> int:
    """Return the bytes of memory for this process: the least limit of its cgroups, or the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in CGROUP_LIMITS:
        try:
            memory = min(memory, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return memory


def budget() -> int:
    """Return half of the usable memory in MiB, without the memory of the process itself."""
    memory = usable_memory()
    return max(memory // 4, (memory - PROCESS_BYTES) // 2) // MIB or 1


def eighth() -> int:
    """Return an eighth of the usable memory in MiB, at most 256."""
    return _share(8, 256)


def sixteenth() -> int:
    """Return a sixteenth of the usable memory in MiB, at most 256."""
    return _share(16, 256)


def larger_eighth() -> int:
    """Return an eighth of the usable memory in MiB, at most 512."""
    return _share(8, 512)


def _share(part: int, most: int) -> int:
    return max(1, min(most, usable_memory() // part // MIB))


def misspelt_variables(names: Iterable[str]) -> dict[str, str]:
    """Return variables that are close to a setting's and no setting's, each with the one that may be meant.

    Further variables of the prefix are not told: Kubernetes makes some for a service of this name, and the client has
    its own.
    """
    known = {name.upper() for name in Settings.model_fields}
    given = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)} - known - CLIENT_VARIABLES
    close = {name: difflib.get_close_matches(name, known, 1, SIMILAR) for name in sorted(given)}
    return {PREFIX + name: PREFIX + found[0] for name, found in close.items() if found}


class Settings(BaseSettings):
    """Serves attention, its outputs and its weights, over gRPC and REST.

    Every flag is also an environment variable: --rest-port is ATTENTION_REST_PORT.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        cli_prog_name="attention-server",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
    )

    models: Path = Field(default_factory=embedded_models, description="the repository of models")
    repository_mode: Literal["none", "poll", "explicit"] = Field(
        "none",
        description="none loads all at the start; poll follows the folder; explicit loads what it is told to",
    )
    repository_poll: float = Field(5.0, gt=0, description="seconds between two looks at the folder, in mode poll")
    load_model: Annotated[tuple[ModelName | Literal["*"], ...], NoDecode] = Field(
        (), description="a model loaded at the start, in mode explicit; repeatable, * is all"
    )
    default_version: Annotated[dict[ModelName, Version], NoDecode] = Field(
        {}, description="NAME=VERSION: the version that answers where none is named, in place of the latest; repeatable"
    )
    strict: bool = Field(
        False, description="end the start when one version that is to be loaded at the start cannot be served"
    )
    max_version_mib: int = Field(4096, ge=1, description="the files of one version of a model, in MiB")
    max_load_seconds: float = Field(
        300.0, gt=0, description="seconds to load, warm and measure one version, in modes poll and explicit"
    )
    host: str = Field("127.0.0.1", description="the address to listen on; 0.0.0.0 for all")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="a name in the Host header of HTTP requests that is accepted, beside localhost, 127.0.0.1 and "
        "[::1]; repeatable; by default every name, or none on a loopback address",
    )
    health_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="a port of HTTP for /healthz and /readyz alone, with a thread of its own; 0 picks a free one",
    )
    max_connection_age: float = Field(
        0.0,
        ge=0,
        description="seconds after which a gRPC client is told to open a new connection, to meet new replicas; its "
        "calls have --grace seconds more; 0 for never",
    )
    rest_port: int = Field(8080, ge=0, le=65535, description="the port of REST; 0 picks a free one")
    grpc_port: int = Field(50051, ge=0, le=65535, description="the port of gRPC; 0 picks a free one")
    grpc_server: Literal["auto", "native", "grpcio"] = Field(
        "auto", description="what serves gRPC: native on libnghttp2, grpcio, or auto, which is native where it can be"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto takes a GPU if there is one"
    )
    slots: int = Field(0, ge=0, description="requests computed at once; 0 is one a usable core")
    max_queued: int = Field(128, ge=1, description="requests that may wait for a slot; more are refused as unavailable")
    max_wait: float = Field(
        0.1,
        gt=0,
        description="predicted seconds that a request may wait for a slot, or twice what it takes, if that is more; "
        "what would wait longer is refused as unavailable",
    )
    max_queued_mib: int = Field(
        default_factory=larger_eighth,
        ge=1,
        description="what requests that wait may hold, with their answers, in MiB; by default an eighth of the memory, "
        "at most 512",
    )
    memory_budget_mib: int = Field(
        default_factory=budget,
        ge=1,
        description="what requests, answers, connections and kept memories may hold together, in MiB; models and the "
        "process need the rest; by default half of the memory, without 128 MiB",
    )
    max_message_mib: int = Field(
        default_factory=eighth,
        ge=1,
        le=2047,
        description="the largest request, in MiB; by default an eighth of the memory, at most 256",
    )
    max_answer_mib: int = Field(
        default_factory=sixteenth,
        ge=1,
        le=2047,
        description="the largest answer, in MiB; writing it takes 4 times that; by default a sixteenth of the memory, "
        "at most 256",
    )
    max_scores_mib: int = Field(
        default_factory=larger_eighth,
        ge=1,
        description="what one sequence may take while it is computed: scores, the stages asked for of all its layers, "
        "and logits (rows x labels), in MiB; by default an eighth of the memory, at most 512",
    )
    max_sequences: int = Field(1024, ge=1, description="sequences in one request")
    max_outputs: int = Field(256, ge=1, description="outputs named in one request")
    max_work_mib: int = Field(
        65536, ge=1, description="scores and logits that are computed for all sequences of one request together, in MiB"
    )
    memory_mib: int = Field(
        default_factory=sixteenth,
        ge=1,
        description="what memories kept by handle may weigh together, in MiB; by default a sixteenth of the memory, at "
        "most 256",
    )
    memory_ttl: float = Field(600.0, gt=0, description="seconds that a memory is kept after its last use")
    tls_cert: Path | None = Field(
        None, description="the certificate of both ports, PEM; without, they speak in the clear"
    )
    tls_key: Path | None = Field(None, description="the certificate's key, PEM")
    tls_client_ca: Path | None = Field(
        None, description="authorities, PEM: callers have to show a certificate of theirs"
    )
    tokens: Path | None = Field(None, description="who may call: a file of tokens; without, everyone may")
    stop_accepting_after: float = Field(
        0.0, ge=0, description="seconds that a stop, having said that it is not ready, goes on accepting requests"
    )
    grace: float = Field(30.0, ge=0, description="seconds that a stop waits for requests already accepted")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    log_format: Literal["text", "json"] = Field("text", description="how it is logged, on stderr")
    access_log: Literal["none", "errors", "all"] = Field(
        "errors", description="the requests that have a line in the log, at level info: none, those that fail, or all"
    )

    @field_validator("load_model", "allowed_hosts", mode="before")
    @classmethod
    def _names(cls, given: object) -> object:
        return [name for name in given.split(",") if name] if isinstance(given, str) else given

    @field_validator("default_version", mode="before")
    @classmethod
    def _versions(cls, given: object) -> object:
        if not isinstance(given, str):
            return given
        return {name: version for name, _, version in (pair.partition("=") for pair in given.split(",") if pair)}

    @model_validator(mode="after")
    def _explicit_alone(self) -> Self:
        if self.load_model and self.repository_mode != "explicit":
            raise ValueError("load_model is for repository_mode explicit; the others load what lies in the folder")
        return self

    @property
    def compute_slots(self) -> int:
        """The number of requests computed at once."""
        return self.slots or usable_cores()
