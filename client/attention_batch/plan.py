"""A job, and the plan that follows from it, its input and its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import grpc
import pyarrow as pa
from attention_client import Ablation
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.masks import Causal
from attention_proto.text import Truncate

from attention_batch.engines.task import Task
from attention_batch.errors import Refused
from attention_batch.output.sink import OUTPUT_FORMATS, OutputFormat, OutputLayout
from attention_batch.readers.documents import ANY_INTEGER
from attention_batch.readers.fields import Fields
from attention_batch.readers.selection import STREAM
from attention_batch.readers.source import Source
from attention_batch.spec import ScoringSpec, digest, resolve


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """The options of a run.

    Attributes:
        input: a file, a folder, a pattern of files, or `-`.
        output: a file, or `-`.
        model, version: the model version that answers; version 0 is the default one.
        outputs: the outputs to write; see `attention_batch.spec`.
        columns: field -> the input's column, where the two names differ.
        causal: the causal mask of every sequence.
        truncate: the end at which tokens of texts are dropped, in rows that say nothing of it.
        ablate: the heads that are switched off.
        tensors: how tensors of one shape stand in Parquet: `list`, fixed-size and nested, or `extension`, Arrow's
            `fixed_shape_tensor`.
        engine: `client` calls a service, `local` computes on this machine, `ray` on a cluster.
        target, token, credentials: of the service: its address, the caller's token, and TLS.
        timeout, patience: seconds for one call, and seconds to wait for a service that does not answer.
        models: the repository's folder, for `local` and `ray`; None for the embedded one.
        shard_rows: rows of a shard, at most.
        max_errors: failed rows that stop the run when exceeded; None for no bound.
        restart: whether to remove an earlier run of this output.
    """

    input: str
    output: str
    model: str
    version: int = 0
    outputs: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    causal: Causal = "none"
    truncate: Truncate = "none"
    ablate: Sequence[Ablation] = ()
    tensors: Literal["list", "extension"] = "list"
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

    @property
    def output_file(self) -> Path | None:
        """The output's path; None for standard output."""
        return None if self.output == STREAM else Path(self.output)


@dataclass(frozen=True)
class Plan:
    """A job resolved against its input and its model."""

    job: ScoringJob
    source: Source
    fields: Fields
    spec: ScoringSpec
    layout: OutputLayout

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Names and values, fit for JSON, that a run must have in common with this one to resume it."""
        job = self.job
        return {
            "input": [[file.path, file.size, file.modified_ns] for file in self.source.files],
            "model": self.spec.model,
            "model version": self.spec.version,
            "model manifest": self.spec.manifest,
            "outputs": [dict(spec) for spec in job.outputs],
            "columns": self.fields.columns,
            "causal": job.causal,
            "truncate": job.truncate,
            "ablate": [[list(each.layers), list(each.heads)] for each in job.ablate],
            "tensors": job.tensors,
            "shard rows": job.shard_rows,
        }

    def task(self) -> Task:
        """Return the task of the engines with many processes."""
        return Task(self.source.files, self.fields, self.spec, self.layout, self.job.models)


def make_plan(job: ScoringJob, source: Source, model: pb.Model) -> Plan:
    """Resolve a job's columns and outputs.

    Raises:
        Refused: the input has not the columns, the model not the outputs, or the output's name no known format.
    """
    columns, id_type = source.columns(job.columns)
    output_format = _format(job.output)
    if output_format == "jsonl" and pa.types.is_integer(id_type):
        id_type = ANY_INTEGER  # JSON has one type for all
    fields = Fields(columns, id_type, job.causal, job.truncate)
    if job.truncate != "none" and not {"text", "memory_text"} & columns.keys():
        raise Refused(f"--truncate {job.truncate}: the rows have no texts; only texts are cut")
    outputs = resolve(job.outputs, model.manifest, reads_text=fields.reads_text)
    if job.tensors == "extension":
        as_tensors = [replace(column, as_extension=True) for column in outputs.columns]
        outputs = replace(outputs, columns=tuple(as_tensors))
    spec = ScoringSpec(model.name, model.version, digest(model), outputs, tuple(job.ablate))
    return Plan(job, source, fields, spec, OutputLayout(output_format, outputs.columns, id_type))


def _format(output: str) -> OutputFormat:
    if output == STREAM:
        return "jsonl"
    found = OUTPUT_FORMATS.get(Path(output).suffix.lower())
    if found is None or Path(output).is_dir():
        raise Refused(
            f"{output}: must be a file whose name ends in {', '.join(OUTPUT_FORMATS)}, or - for standard output"
        )
    return found
