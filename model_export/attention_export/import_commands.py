"""The commands `attention-export import`: a state dict of PyTorch's attention, or a checkpoint of `transformers`."""

from pathlib import Path
from typing import Annotated

import typer

from attention_export.arguments import WRITTEN, AsJson, License, Repository, Version
from attention_export.console import console, exit_on_user_error, print_line, print_result, version_document
from attention_export.export import export
from attention_export.importing import read_tensors
from attention_export.importing.multihead import import_multihead
from attention_export.model import Model

imports = typer.Typer(help="Export attention that was trained elsewhere.", no_args_is_help=True)


@imports.command("multihead")
def import_multihead_command(
    weights: Annotated[
        Path, typer.Argument(exists=True, help="a state dict of nn.MultiheadAttention: .safetensors, or .pt of tensors")
    ],
    name: Annotated[str, typer.Option(help="the model's name")],
    heads: Annotated[int, typer.Option(min=1, help="number of heads, which the state dict does not contain")],
    models: Repository = WRITTEN,
    version: Version = 1,
    cross: Annotated[
        bool, typer.Option("--cross", help="import as cross_attention: keys and values of another sequence")
    ] = False,
    prefix: Annotated[
        str, typer.Option(help="prefix of the names of its tensors, such as self_attn. in an encoder layer")
    ] = "",
    add_zero_attn: Annotated[
        bool, typer.Option("--add-zero-attn", help="it was made with add_zero_attn, which the state dict does not say")
    ] = False,
    license_: License = "",
    as_json: AsJson = False,
) -> None:
    """Export an `nn.MultiheadAttention`: projections packed or separate, with or without bias, kdim and vdim."""
    with exit_on_user_error():
        tensors = read_tensors(weights)
        block = import_multihead(tensors, heads, prefix=prefix, cross=cross, zero_key=add_zero_attn)
        source = f"{weights.name}, {prefix}" if prefix else weights.name
        model = Model(block, "An imported nn.MultiheadAttention.", license=license_, source=source)
        folder = export(model, models, name, version, progress=print_line)
    print_result(version_document(folder), as_json)


@imports.command("transformer")
def import_transformer_command(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="a checkpoint: config.json, weights and tokenizer")
    ],
    name: Annotated[str, typer.Option(help="the model's name")],
    models: Repository = WRITTEN,
    version: Version = 1,
    task: Annotated[
        str,
        typer.Option(
            help="base, sequence-classification, token-classification, masked-lm, causal-lm, seq2seq-lm; "
            "auto: as config.json says"
        ),
    ] = "auto",
    pool: Annotated[
        str,
        typer.Option(
            help="mean, first or last: how `hidden` becomes an embedding", show_default="as modules.json says"
        ),
    ] = "",
    license_: License = "",
    source: Annotated[str, typer.Option(help="where the weights come from", show_default="the folder's name")] = "",
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint of `transformers`, every attention of it, if it is equal to the checkpoint."""
    # `transformers` takes seconds to import, and no further command needs it.
    from attention_export.importing.transformer import import_transformer  # noqa: PLC0415

    with exit_on_user_error(), console.status(f"importing {folder}"):
        import_transformer(
            folder,
            models,
            name,
            version,
            task=None if task == "auto" else task,
            pool=pool,
            license_=license_,
            source=source,
            progress=print_line,
        )
    print_result(version_document(models / name / str(version)), as_json)
