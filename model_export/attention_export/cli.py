"""The command `attention-export`: train, export, verify."""

from collections.abc import Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from attention_export.arguments import WRITTEN, AsJson, License, Repository, Version
from attention_export.blocks import BLOCKS, Dims, DotProduct, SelfAttention
from attention_export.console import console, exit_on_user_error, print_line, print_result, version_document
from attention_export.export import export
from attention_export.figures import save_figure
from attention_export.import_commands import imports
from attention_export.importing import fill, read_tensors, transposed
from attention_export.int8 import Bounds, quantize
from attention_export.manifest import new_version, read_manifest
from attention_export.model import Model
from attention_export.own_data import Options, OwnData, own_data
from attention_export.tasks import TASKS
from attention_export.training import LICENSE, Task, TrainedModel, check_bars, reproducible
from attention_export.training_bars import training_bars
from attention_export.verify import verify

app = typer.Typer(
    help="Trains attention blocks, exports them to ONNX and verifies them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(imports, name="import")

FIGURE = "training.png"  # the manifest does not name it, so no server reads it

BlockName = Enum("BlockName", {name: name for name in BLOCKS}, type=str)  # type: ignore[misc] # for typer's choices
TaskName = Enum("TaskName", {name: name for name in TASKS}, type=str)  # type: ignore[misc]


class Layout(StrEnum):
    """The axes of a matrix in a file."""

    IN_OUT = "in-out"
    OUT_IN = "out-in"


Seed = Annotated[int, typer.Option(min=0, help="the seed of random weights and of generated data")]


@app.command()
def block(
    kind: Annotated[BlockName, typer.Argument(help="the kind of block")],
    name: Annotated[str, typer.Option(help="the model's name")],
    models: Repository = WRITTEN,
    version: Version = 1,
    width: Annotated[int, typer.Option(min=0, help="width of a query; 0 is any width in dot_product")] = 0,
    key_width: Annotated[int, typer.Option(min=0, help="width of a key; 0 is the query's")] = 0,
    value_width: Annotated[int, typer.Option(min=0, help="width of a value; 0 is the key's")] = 0,
    output_width: Annotated[int, typer.Option(min=0, help="width of the output; 0 is the query's")] = 0,
    heads: Annotated[int, typer.Option(min=1, help="number of heads")] = 1,
    head_width: Annotated[int, typer.Option(min=0, help="width of a head's queries and keys; 0 is width / heads")] = 0,
    value_head_width: Annotated[int, typer.Option(min=0, help="width of a head's values; 0 is head-width")] = 0,
    key_value_heads: Annotated[
        int, typer.Option(min=0, help="dot_product only: heads of k and v; 0 is as many as heads")
    ] = 0,
    scale: Annotated[float, typer.Option(help="factor of the scores; 0 is the block's default")] = 0.0,
    softcap: Annotated[float, typer.Option(min=0, help="bound of the scores by tanh; 0 is none")] = 0.0,
    bias: Annotated[bool, typer.Option(help="whether projections have a bias")] = True,
    weights: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="safetensors file of the matrices M_Q, b_Q, ..; random by the seed if absent. A matrix is in x out, "
            "as in x @ M_Q + b_Q; see --layout",
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="the axes of the matrices in --weights: in-out, or out-in as in nn.Linear.weight",
            show_default="in-out",
        ),
    ] = None,
    license_: License = "",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Export one block, with weights of your own or drawn from a seed."""
    with exit_on_user_error(), reproducible(seed):
        dims = Dims(width, key_width, value_width, heads, head_width, value_head_width, output_width, key_value_heads)
        made = _make(kind.value, dims, scale=scale, softcap=softcap, bias=bias)
        if weights is not None:
            tensors = read_tensors(weights)
            fill(made, transposed(tensors) if layout is Layout.OUT_IN else tensors)
        elif layout is not None:
            raise ValueError("--layout: only with --weights; random matrices have one layout")
        origin = (
            "weights given"
            if weights
            else "nothing learned"
            if kind.value == "dot_product"
            else f"drawn from seed {seed}"
        )
        model = Model(made, f"A {kind.value} block, {origin}.", license=license_)
        folder = export(model, models, name, version, progress=print_line)
    print_result(version_document(folder), as_json)


@app.command()
def train(
    task: Annotated[Optional[TaskName], typer.Argument(help="the task; or give --data")] = None,  # noqa: UP045
    models: Repository = WRITTEN,
    name: Annotated[str, typer.Option(help="the model's name", show_default="the task's")] = "",
    version: Version = 1,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(min=0, help="optimiser steps", show_default="0, the task's number")] = 0,
    figure: Annotated[
        Path | None,
        typer.Option(help="file of the figure of loss and weights", show_default=f"{FIGURE} in the version's folder"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="your own data: JSONL of sequences and labels")
    ] = None,
    block: Annotated[BlockName | None, typer.Option(help="with --data: the kind of block")] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="with --data: number of heads",
            show_default="4 in multi_head and cross_attention, otherwise 1",
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=1, help="with --data: width of embedding and output", show_default="64")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="with --data, in place of --steps: epochs", show_default="20, and at least 2,000 steps"
        ),
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="with --data: share of rows for evaluation only", show_default="0.2")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1, help="with --data: evaluations without a lower loss until training ends", show_default="10"
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="with --data of words: the greatest length of a text to serve",
            show_default="512, or the longest row's",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="with --data: a folder to save checkpoints in and resume an interrupted run from"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a block on a task, or on data of your own, measure it on held-out data, and export it.

    A task has bars, and a model below one of them is not exported. A row of data is an object with the sequence,
    as "text", "tokens" or "vectors", and its "label", or "labels", one for each position; several go by name, as in
    {"text": "a good film", "label": {"sentiment": "good", "topic": "film"}}. Cross-attention has a second sequence:
    "memory_text", "memory_tokens" or "memory_vectors".
    """
    options: dict[str, Any] = {"heads": heads, "width": width, "epochs": epochs, "held_out": held_out}
    options |= {"patience": patience, "max_tokens": max_tokens}
    with exit_on_user_error():
        chosen = _select_task(task, data, block, name, checkpoint, options | {"steps": steps or None})
        new_version(models, name or chosen.model, version)  # fails before minutes of training, not after
        if isinstance(chosen, OwnData) and chosen.max_tokens:
            print_line(f"texts of at most {chosen.max_tokens} tokens will be served; --max-tokens sets the number")
        trained = _train(chosen, seed, steps or chosen.steps)
        _print_figures(chosen, trained)
        check_bars(trained.training.figures, chosen.bars)
        folder = export(trained.model, models, name or chosen.model, version, progress=print_line)
        _draw(trained, figure or folder / FIGURE)
    print_result(version_document(folder) | {"held_out": dict(trained.training.figures)}, as_json)


@app.command("verify")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="a version's folder, such as models/multi-head/1")],
    as_json: AsJson = False,
) -> None:
    """Compare every graph of a version with PyTorch in float64."""
    with exit_on_user_error():
        parity = verify(folder)
    table = Table(
        "stage",
        "largest error",
        title=f"{folder}: {parity.cases} cases, all within {parity.atol:g} + {parity.rtol:g} |x|",
    )
    for stage, error in sorted(parity.max_abs_error.items()):
        table.add_row(stage, f"{error:.2e}")
    document = {"folder": str(folder), "cases": parity.cases, "atol": parity.atol, "rtol": parity.rtol}
    print_result(document | {"max_abs_error": dict(parity.max_abs_error)}, as_json, table)


@app.command("heads")
def heads_command(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="a version, such as models/cross-attention/1")],
    gold: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="sentence pairs with alignments: lines of source, target and links as `0-1 1-0` (`0p1` for a possible "
            "one) with tabs between them, or JSON lines of memory_text, text and alignment",
        ),
    ],
    most: Annotated[int, typer.Option("--most", min=1, help="the number of rows shown")] = 20,
    as_json: AsJson = False,
) -> None:
    """Rank layers and heads by alignment error rate."""
    # onnxruntime and the runner of transformers take time to import, and few commands need both.
    from attention_export.alignment import rank_heads, ranked_rows  # noqa: PLC0415

    with exit_on_user_error():
        scores = rank_heads(folder, gold)
    table = Table("layer or head", "error rate", "precision", "recall", "links", title=f"{folder}: the best aligners")
    for row in ranked_rows(scores[:most]):
        table.add_row(*row)
    fields = ("name", "error_rate", "precision", "recall", "links")
    best = [{field: getattr(score, field) for field in fields} for score in scores[:most]]
    print_result({"folder": str(folder), "best": best}, as_json, table)


@app.command("quantize")
def quantize_command(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="a version, such as models/multi-head/1")],
    data: Annotated[
        Path, typer.Option(exists=True, help="sequences to measure on: .npy, or JSON lines of text or vectors")
    ],
    version: Version,
    models: Repository = WRITTEN,
    max_weight_error: Annotated[float, typer.Option(min=0, help="bound of a weight's error")] = 0.05,
    max_output_error: Annotated[
        float, typer.Option(min=0, help="bound of an output's error, as a share of the largest output")
    ] = 0.05,
    min_speedup: Annotated[float, typer.Option(min=0, help="bound of float32's time / int8's")] = 1.1,
    allow_slower: Annotated[bool, typer.Option("--allow-slower", help="no bound of speed")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an int8 version for CPUs, if its error and speed on your data are within bounds."""
    with exit_on_user_error():
        bounds = Bounds(max_weight_error, max_output_error, 0.0 if allow_slower else min_speedup)
        written = quantize(folder, data, version, repository=models, bounds=bounds, progress=print_line)
        found = read_manifest(written).quantization
    table = Table(
        "layer",
        "stage",
        "largest error",
        "mean",
        "of the largest",
        title=f"{written}: {found.sequences} sequences, {found.speedup:.2f} x as fast as float32 "
        f"({1e3 * found.int8_seconds:.3f} against {1e3 * found.float32_seconds:.3f} ms a sequence)",
    )
    for error in found.errors:
        row = (f"{error.largest:.2e}", f"{error.mean:.2e}", f"{error.relative:.2%}")
        table.add_row(error.layer, error.stage, *row)
    print_result(version_document(written) | {"quantization": MessageToDict(found)}, as_json, table)


@app.command()
def embedded(
    models: Annotated[Path, typer.Argument(help="the repository to write; its versions must not exist yet")],
    figures: Annotated[Optional[Path], typer.Option(help="a folder for the figures")] = None,  # noqa: UP045
) -> None:
    """Make the embedded repository: a trained model for every task, and the plain dot product."""
    description = "Attention on the raw vectors, of any width: nothing is learned."
    with exit_on_user_error():
        for task in TASKS.values():
            new_version(models, task.model, 1)
        export(Model(DotProduct(), description, license=LICENSE), models, "dot-product", 1, progress=print_line)
    for task in TASKS.values():
        train(TaskName(task.name), models, figure=figures / f"{task.name}.png" if figures else None)


def main() -> None:
    """Run the command."""
    app()


def _draw(trained: TrainedModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(trained, path)
    print_line(f"drew {path}")


def _make(kind: str, dims: Dims, *, scale: float, softcap: float, bias: bool) -> DotProduct:
    block_class = BLOCKS[kind]
    if issubclass(block_class, SelfAttention):
        return block_class(dims, bias=bias, scale=scale, softcap=softcap)
    return block_class(dims, scale=scale or 1.0, softcap=softcap)


def _select_task(
    task: TaskName | None,
    data: Path | None,
    block: BlockName | None,
    name: str,
    checkpoint: Path | None,
    options: Mapping[str, Any],
) -> Task:
    """Return the named task, or the task of a data file.

    Raises:
        ValueError: options are missing or exclude each other.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if (task is None) == (data is None):
        raise ValueError(f"give a task, one of {', '.join(TASKS)}, or --data FILE, not both")
    if data is not None:
        if block is None or not name:
            raise ValueError(f"--data needs --block, one of {', '.join(BLOCKS)}, and --name, for the model")
        return own_data(data, name, Options(block.value, **given), checkpoint)
    assert task is not None
    apart = {"block": block, "checkpoint": checkpoint, **given}
    if wrong := [option for option, value in apart.items() if value is not None and option != "steps"]:
        options_said = ", ".join(f"--{option.replace('_', '-')}" for option in wrong)
        raise ValueError(f"{options_said}: only with --data; a task has its own")
    return TASKS[task.value]


def _train(task: Task, seed: int, steps: int) -> TrainedModel:
    with training_bars(console) as on_progress:
        return task.train(seed, steps, on_progress)


def _print_figures(task: Task, trained: TrainedModel) -> None:
    table = Table(
        "held out",
        "figure",
        "bar",
        title=f"{task.name}, seed {trained.training.seed}",
    )
    for name, figure in sorted(trained.training.figures.items()):
        table.add_row(name, f"{figure:.4f}", str(task.bars.get(name, "")))
    console.print(table)
