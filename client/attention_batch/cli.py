"""The command `attention-client score`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from attention_client.cli.choice import Ablate, read_ablate
from attention_client.cli.options import Causal, Truncate
from attention_proto.allocator import keep_freed


class Engine(StrEnum):
    """The engines that compute answers."""

    CLIENT = "client"
    LOCAL = "local"
    RAY = "ray"


class Tensors(StrEnum):
    """How tensors of one shape stand in Parquet."""

    LIST = "list"
    EXTENSION = "extension"


Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="Parquet, Arrow, JSON lines or CSV: a file, folder or pattern; or -.")
]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="A .parquet or .jsonl file; or -.")]
Model = Annotated[str, typer.Option(help="The model's name; `attention-client models` lists the names.")]
Version = Annotated[
    int, typer.Option(min=0, help="The model's version.", show_default="0, the version that the server answers with")
]
Outputs = Annotated[
    str,
    typer.Option(help="Columns to write, with commas: output:mean, weights, entropy, tokens, ...; or specs as JSON."),
]
Shapes = Annotated[
    Tensors, typer.Option(help="Tensors of one shape in Parquet: fixed-size lists, or Arrow's fixed_shape_tensor.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=COLUMN", help="The column of a field: id, text, query, key, value or memory_text."),
]
Pair = Annotated[str, typer.Option(metavar="COLUMN", help="The column of the second texts of pairs.")]
Prefix = Annotated[
    str,
    typer.Option(
        metavar="COLUMN",
        help="The column of the texts that stand before the rows' own: each is computed once, and kept.",
    ),
]
Cut = Annotated[Truncate, typer.Option(help="Cut texts that are too long, at this end.")]
Mask = Annotated[Causal, typer.Option(help="Hide the future, lined up at first or last position.")]
Engines = Annotated[
    Engine, typer.Option(help="Call a service, compute on this machine, or on a Ray cluster (RAY_ADDRESS).")
]
Target = Annotated[
    str, typer.Option(envvar="ATTENTION_TARGET", help="The service: HOST:PORT, or several A:PORT,B:PORT.")
]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for one answer.")]
Patience = Annotated[float, typer.Option(min=0, help="Seconds to wait for a service that does not answer.")]
Models = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The repository of models, for the engines local and ray.")
]
ShardRows = Annotated[int, typer.Option(min=1, help="Rows of a shard; a crash costs at most these.")]
MaxErrors = Annotated[int | None, typer.Option(min=0, help="Stop when more rows than this have failed.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Show progress and summary as JSON lines on stderr, as into a pipe.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Remove an earlier run of this output, and begin again.")]


def score(
    context: typer.Context,
    source: Input,
    output: Output,
    *,
    model: Model,
    version: Version = 0,
    outputs: Outputs = "",
    tensors: Shapes = Tensors.LIST,
    column: Columns = None,
    text_pair: Pair = "",
    prefix: Prefix = "",
    truncate: Cut = Truncate.NONE,
    causal: Mask = Causal.NONE,
    ablate: Ablate = "",
    engine: Engines = Engine.CLIENT,
    target: Target = "127.0.0.1:50051",
    timeout: Timeout = 120.0,
    patience: Patience = 300.0,
    models: Models = None,
    shard_rows: ShardRows = 4096,
    max_errors: MaxErrors = None,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Score a file of sequences. After any end of the run, the same command resumes it.

    Exit status: 0 all rows are scored; 1 refused; 3 all but those in OUTPUT.errors.jsonl; 4 stopped, can be resumed;
    5 more rows failed than --max-errors.
    """
    keep_freed()
    try:
        from attention_batch.errors import ScoringError  # noqa: PLC0415
        from attention_batch.plan import ScoringJob  # noqa: PLC0415 # pyarrow is an extra, and slow to import
        from attention_batch.run import run  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        _fail(f"score needs {missing.name}: pip install 'attention-service[batch]'", 1)
    try:
        job = ScoringJob(
            input=source,
            output=output,
            model=model,
            version=version,
            outputs=read_outputs(outputs),
            tensors=tensors.value,
            columns=_columns(column or [], text_pair=text_pair, prefix=prefix),
            causal=causal.value,
            truncate=truncate.value,
            ablate=read_ablate(ablate),
            engine=engine.value,
            target=target,
            token=context.obj.token,
            credentials=context.obj.credentials,
            timeout=timeout,
            patience=patience,
            models=models,
            shard_rows=shard_rows,
            max_errors=max_errors,
            restart=restart,
        )
        status = run(job, sys.stdin.buffer, sys.stdout.buffer, as_json=as_json)
    except ScoringError as error:
        _fail(str(error), error.exit_status)
    raise typer.Exit(status)


def read_outputs(text: str) -> list[dict[str, Any]]:
    """Read `--outputs`: names, `NAME:POOL`, or a JSON list of specs; print an error and exit where it is none."""
    from attention_batch.errors import Refused  # noqa: PLC0415
    from attention_batch.spec import parse  # noqa: PLC0415

    try:
        return parse(text)
    except Refused as error:
        _fail(str(error), error.exit_status)


def _columns(options: list[str], **named: str) -> dict[str, str]:
    """Return field -> column, of `--column` and of the options for one field each."""
    pairs = [item.partition("=") for item in options]
    for item, (field, _, name) in zip(options, pairs, strict=True):
        if not field or not name:
            raise typer.BadParameter(f"{item!r} must be FIELD=COLUMN", param_hint="--column")
    return {field: name for field, _, name in pairs} | {field: name for field, name in named.items() if name}


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)
