"""The settings: each is a flag, an `ATTENTION_*` variable and a line of `--help`."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from attention_proto.folder import NAME
from pydantic import Field, StringConstraints, ValidationError, create_model, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict, SettingsError

from attention_server.machine import usable_cores, usable_memory

MIB = 1024 * 1024
PREFIX = "ATTENTION_"
CLIENT_VARIABLES = {"CA", "CERT", "KEY", "TARGET", "TLS", "TOKEN"}
SIMILAR = 0.8  # ratio of difflib
PROCESS_BYTES = 128 * MIB  # without models

ModelName = Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
Version = Annotated[int, Field(ge=1, le=999_999_999)]


def embedded_models() -> Path:
    """Return the folder of the embedded models: inside the package, or in the checkout."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "models"


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

    Every flag is also an environment variable: --rest-port is ATTENTION_REST_PORT. `attention-server doctor`, with the
    same flags, reports what this machine has and what the server would do.
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
    trial_records: Path | None = Field(
        None,
        description="a folder in which results of loading are kept: a version with the same bytes is not probed and "
        "measured again at the next start",
    )
    model_budget_mib: int | None = Field(
        None,
        ge=1,
        description="what the graphs of all versions may weigh in memory, in MiB: versions used least recently are "
        "evicted and come back with the next request, which waits for it; without, none is",
    )
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
    load_reports: bool = Field(
        False, description="whether answers have an ORCA load report beside them, for load balancers that weigh by it"
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


def settings_of_this_machine() -> type[Settings]:
    """Return settings whose defaults are values: what the factories give here. Their help shows the values."""
    fields: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        if field.default_factory is not None:
            valued = copy.copy(field)
            valued.default, valued.default_factory = field.get_default(call_default_factory=True), None
            fields[name] = (field.annotation, valued)
    return create_model("Settings", __base__=Settings, __doc__=Settings.__doc__, **fields)


def read_settings(arguments: list[str] | None = None) -> Settings:
    """Return the settings that flags and variables give.

    Args:
        arguments: the flags; None for those of the process.

    Raises:
        SettingsError: one of them is refused; the error has a line for each.
    """
    try:
        return CliApp.run(Settings, cli_args=arguments)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe, error.errors()))) from error


def _describe(error: Mapping[str, Any]) -> str:
    """Return one line on a refused value, with the flag and the variable that set it."""
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0])
    item = "".join(f"[{each}]" for each in error["loc"][1:])
    return f"--{name.replace('_', '-')} ({PREFIX}{name.upper()}){item}: {error['msg']}; it is {error['input']!r}"
