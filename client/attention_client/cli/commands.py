"""The commands of `attention-client`. To import this module needs the extra `cli`."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from attention_batch.cli import read_outputs, score
from attention_proto.attention.v1 import attention_pb2 as pb
from attention_proto.chains import OF_SOURCE, site_axes
from attention_proto.command import output_width
from attention_proto.offers import EVERY_LAYER
from attention_proto.stages import OUTPUTS
from rich.console import Console

from attention_client import __version__
from attention_client.api.generate import speech_of
from attention_client.api.translate import translate as translate_text
from attention_client.cli import choice, mask
from attention_client.cli.connection import Target, Timeout, caller, connect, fail
from attention_client.cli.listing import describe_models, models_document
from attention_client.cli.options import Causal, Truncate
from attention_client.display.document import as_document, token_document, translation_document
from attention_client.display.heatmap import render, render_translation
from attention_client.display.picture import picture, row_of
from attention_client.display.viewer import page
from attention_client.inputs import OutputSpec, Sample
from attention_client.result import Array, AttendResult
from attention_client.wire import channel

SHOWN_KEYS = 3  # that a generated token looked at most

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _pem_option(variable: str, help_: str) -> Any:
    return typer.Option(exists=True, dir_okay=False, metavar="FILE", envvar=variable, help=help_)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"attention-client {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    context: typer.Context,
    *,
    token: Annotated[str | None, typer.Option(envvar="ATTENTION_TOKEN", help="Who calls, where a server asks.")] = None,
    tls: Annotated[bool, typer.Option("--tls", envvar="ATTENTION_TLS", help="Speak TLS, to a public name.")] = False,
    ca: Annotated[Path | None, _pem_option("ATTENTION_CA", "Speak TLS, to who has a certificate of these.")] = None,
    cert: Annotated[Path | None, _pem_option("ATTENTION_CERT", "Your own certificate, for mutual TLS.")] = None,
    key: Annotated[Path | None, _pem_option("ATTENTION_KEY", "Your certificate's key.")] = None,
    version: Annotated[  # noqa: ARG001  # handled by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Ask an Attention Service."""
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert and --key go together")
    context.obj = caller
    caller.token = token
    caller.credentials = channel.tls(ca, cert, key) if tls or ca or cert else None


def _array(path: str) -> Array:
    try:
        return np.asarray(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error


OUTPUTS_HELP = (
    f"Outputs to show, with commas: {', '.join(OUTPUTS)}; NAME:mean, NAME:first or NAME:last pools rows. Or a JSON "
    'list of outputs with their options, such as [{"name": "weights", "pairs": ["0.1"]}].'
)
ArrayFile = Annotated[
    Array | None, typer.Option(parser=_array, metavar="FILE.npy", help="Vectors, a row for each position.")
]
Text = Annotated[str | None, typer.Argument(help="The sequence, for a text model; others take --query.")]
Version = Annotated[
    int, typer.Option(min=0, help="The model's version.", show_default="0, the version that the server answers with")
]
MemoryText = Annotated[str | None, typer.Option(help="The sequence to attend to, when it is another.")]


@app.command(no_args_is_help=True)
def attend(
    text: Text = None,
    *,
    model: choice.Model,
    version: Version = 0,
    text_pair: Annotated[
        str | None, typer.Option(help="The second text of a pair, for a model that takes pairs.")
    ] = None,
    memory_text: MemoryText = None,
    truncate: Annotated[Truncate, typer.Option(help="Cut a text that is too long, at this end.")] = Truncate.NONE,
    query: ArrayFile = None,
    key: ArrayFile = None,
    value: ArrayFile = None,
    causal: mask.CausalMask = Causal.NONE,
    window: mask.Window = "",
    mask_json: mask.MaskJson = "",
    mask_layer: mask.MaskLayers = None,
    outputs: Annotated[str, typer.Option(help=OUTPUTS_HELP, show_default="weights, and predictions for a text")] = "",
    layer: choice.Layer = "",
    head: choice.Heads = None,
    rows: choice.Rows = "",
    pairs: choice.Pairs = "",
    top_k: choice.TopK = 0,
    span: choice.Spans = None,
    fold: choice.Folded = None,
    ablate: choice.Ablate = "",
    score_temperature: choice.Temperature = None,
    target: Target = "127.0.0.1:50051",
    timeout: Timeout = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document.")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the weights into a picture.")] = None,
) -> None:
    """Attend over one sequence, and show the weights of each head."""
    chosen = choice.chosen_weights(layer, head, pairs, top_k, span, fold, rows)
    if chosen is not None and outputs:
        raise typer.BadParameter(
            "says which weights; leave --layer, --head, --rows, --pairs, --top-k, --span and --fold out",
            param_hint="--outputs",
        )
    off = choice.read_ablate(ablate)
    masked = mask.read_mask(causal, window, mask_json, mask_layer)
    with connect(target, timeout) as client:
        shown: list[Any] = read_outputs(outputs) or _default_outputs(client.model(model, version), text)
        if chosen is not None:
            shown = [chosen.spec if each == "weights" else each for each in shown]
        whole = "weights" in shown or {"name": "weights"} in shown
        result = client.attend(
            model,
            version=version,
            text=text,
            text_pair=text_pair,
            memory_text=memory_text,
            truncate=truncate.value,
            query=query,
            key=key,
            value=value,
            **masked,
            outputs=shown,
            ablate=off,
            score_temperature=score_temperature,
        )
    if as_json:
        typer.echo(json.dumps(as_document([result])))
    else:
        console = Console(width=output_width())
        console.print(render(result, console.width, whole=whole))
    if png and not whole:
        fail("--png draws whole weights; ask for `weights` without options")
    if png:
        _import_plot().figure(result).savefig(png)


@app.command(no_args_is_help=True)
def plot(
    text: Text = None,
    *,
    model: choice.Model,
    version: Version = 0,
    memory_text: MemoryText = None,
    query: ArrayFile = None,
    key: ArrayFile = None,
    value: ArrayFile = None,
    causal: mask.CausalMask = Causal.NONE,
    window: mask.Window = "",
    mask_json: mask.MaskJson = "",
    mask_layer: mask.MaskLayers = None,
    layer: choice.DrawnLayer = "",
    head: choice.Heads = None,
    pairs: choice.Pairs = "",
    asking: choice.From = "",
    ablate: choice.Ablate = "",
    score_temperature: choice.Temperature = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw lines and letters that can be edited.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw dots.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that can be pointed at.")] = None,
    target: Target = "127.0.0.1:50051",
    timeout: Timeout = 30.0,
) -> None:
    """Draw the weights of each head into files; with --layer '*' an atlas, with --from WORD arcs from a word."""
    _check_files(svg=svg, png=png, html=html)
    pictures = [file for file in (svg, png) if file is not None]
    chosen = choice.chosen_weights(layer, head, pairs)
    if html is not None and chosen is not None and chosen.titles:
        raise typer.BadParameter("the page has every head; leave --html out", param_hint="--head, --pairs")
    is_atlas = layer == EVERY_LAYER
    if is_atlas and head:
        raise typer.BadParameter("all layers are drawn with all their heads; leave it out", param_hint="--head")
    if is_atlas and asking:
        raise typer.BadParameter("arcs are of one layer; leave --layer '*' out", param_hint="--from")
    off = choice.read_ablate(ablate)
    masked = mask.read_mask(causal, window, mask_json, mask_layer)
    drawing = _import_plot("--svg and --png need") if pictures else None
    with connect(target, timeout) as client:
        described = client.model(model, version)
        layer = "" if chosen is None or is_atlas else chosen.layer
        every = {each.name: site_axes(each, described.manifest) for each in described.manifest.layers}
        if layer and layer not in every:
            fail(f"there is no layer {layer!r}; there is {', '.join(every)}")
        axes = every[layer or list(every)[-1]]
        layers = [name for name, own in every.items() if own == axes]  # one page has matrices of one shape
        drawn_spec = chosen.spec if chosen is not None else OutputSpec("weights")
        weights = [OutputSpec("weights", layers=layers) if html or is_atlas else drawn_spec]
        predicts = text is not None and axes != OF_SOURCE and described.manifest.predictors
        predictions = ["predictions"] if predicts else []
        result = client.attend(
            model,
            version=version,
            text=text,
            memory_text=memory_text,
            query=query,
            key=key,
            value=value,
            **masked,
            outputs=[*weights, *predictions],
            ablate=off,
            score_temperature=score_temperature,
        )
    one = _one_layer(result, layer or layers[-1])
    row = _row(one, asking) if asking else None
    if html:
        html.write_text(page(result, row=row), "utf-8")
    if drawing:
        titles = () if chosen is None else chosen.titles
        if row is not None:
            from attention_client.display.arcs import arcs  # noqa: PLC0415  # matplotlib is there by now

            drawn = arcs(one, row, titles)
        else:
            drawn = drawing.atlas(result) if is_atlas else drawing.figure(one, titles)
        for format_, file in (("svg", svg), ("png", png)):
            if file:
                drawn.savefig(file, format=format_)


def _check_files(**files: Path | None) -> None:
    if not any(files.values()):
        raise typer.BadParameter("say where to draw: --svg FILE, --png FILE or --html FILE")
    for kind, file in files.items():
        if file is not None and file.suffix.lower() != f".{kind}":
            raise typer.BadParameter(f"--{kind} writes {kind.upper()}: {file.name!r} has to end in .{kind}")


def _row(result: AttendResult, word: str) -> int:
    try:
        return row_of(picture(result), word)
    except ValueError as error:
        fail(f"--from: {error}")


def _one_layer(result: AttendResult, layer: str) -> AttendResult:
    """Return a result with one layer's weights under the name `weights`."""
    name = f"weights@{layer}"
    drawn = {"weights": result[name if name in result.outputs else "weights"]}
    return replace(result, outputs=drawn, layers={"weights": layer})


@app.command(no_args_is_help=True)
def translate(
    text: Annotated[str, typer.Argument(help="What to translate.")],
    *,
    model: Annotated[str, typer.Option(help="The model's name, as `cross-attention`.")],
    version: Version = 0,
    head: Annotated[
        int | None, typer.Option(min=0, help="Whose weights to show; else the head that aligns, or the mean of all.")
    ] = None,
    target: Target = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each word.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the translation as one JSON document.")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the alignment into a picture.")] = None,
) -> None:
    """Translate a text word by word, and show the alignment of the words."""
    with connect(target, timeout) as client:
        translation = translate_text(client, model, text, version=version)
        aligned = translation_document(translation, head)
    if as_json:
        typer.echo(json.dumps(aligned))
    else:
        console = Console(width=output_width())
        console.print(render_translation(translation, console.width, head))
    if png and not translation.words:
        fail("nothing was said, so there is no alignment to draw")
    if png:
        _import_plot().alignment(translation, head).savefig(png)


@app.command(no_args_is_help=True)
def generate(
    prompt: Annotated[str, typer.Argument(help="What to go on from; of an encoder-decoder the source.")],
    former: Annotated[str | None, typer.Argument(hidden=True, metavar="")] = None,
    *,
    model: Annotated[
        str, typer.Option(help="The model's name; `attention-client models` lists them.", show_default="required")
    ] = "",
    version: Version = 0,
    tokens: Annotated[int, typer.Option(min=1, help="The most tokens to generate.")] = 40,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the most probable token each time; otherwise tokens are drawn.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(min=0, help="Divides the logits of a draw.")] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Draw of the k most probable tokens.")] = 0,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Draw of tokens of this probability.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws: the same tokens for the same seed.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be given again.")] = None,
    show_attention: Annotated[
        bool, typer.Option("--show-attention", help="Show what each token looked at most, by the mean of all heads.")
    ] = False,
    pairs: Annotated[str, typer.Option(help="With --show-attention: by these heads, as 10.5, with commas.")] = "",
    target: Target = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each token.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a token.")] = False,
) -> None:
    """Go on with a text token by token, and show the tokens that each was read from."""
    if former is not None or not model:
        text, name = (prompt, "NAME") if former is None else (former, prompt)
        raise typer.BadParameter(
            f"the model is an option: attention-client generate {shlex.quote(text)} --model {name}",
            param_hint="--model",
        )
    draws = (temperature, top_p, seed)
    if greedy and (top_k or any(each is not None for each in draws)):
        raise typer.BadParameter("--greedy draws no tokens; leave --temperature, --top-k, --top-p and --seed out")
    sample = None if greedy else Sample(temperature, top_k, top_p, seed)
    if pairs and not show_attention:
        raise typer.BadParameter("chooses the heads of --show-attention; give both", param_hint="--pairs")
    weights = {"name": "weights", "reduce": "mean", "top_k": SHOWN_KEYS, "pairs": list(choice.listed(pairs))}
    with connect(target, timeout) as client:
        has_source = speech_of(client.model(model, version)).has_source
        steps = client.generate(
            model,
            None if has_source else prompt,
            memory_text=prompt if has_source else None,
            tokens=tokens,
            outputs=[weights] if show_attention else [],
            sample=sample,
            stop=stop or (),
            version=version,
        )
        text = ""
        for step in steps:
            said = token_document(step)
            if as_json:
                typer.echo(json.dumps(said))
            elif show_attention:
                looked_at = "  ".join(f"{key} {weight:.2f}" for key, weight in said["attention"])
                typer.echo(f"{step.token:<16} {looked_at}")
            else:
                begins = step.text.startswith(text)  # a space may turn out to be none
                typer.echo(step.text[len(text) :] if begins else f"\n{step.text}", nl=False)
                text = step.text
    if not (as_json or show_attention):
        typer.echo()


@app.command()
def models(
    target: Target = "127.0.0.1:50051",
    timeout: Timeout = 30.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the models as one JSON document, as REST does.")
    ] = False,
) -> None:
    """List the served models: layers, heads, widths, tokens, training and its figures."""
    with connect(target, timeout) as client:
        served = client.models()
    if as_json:
        typer.echo(json.dumps(models_document(served)))
    else:
        console = Console(width=output_width())
        for line in describe_models(served):
            console.print(line)


app.command(no_args_is_help=True)(score)


def _default_outputs(model: pb.Model, text: str | None) -> list[str]:
    """Return the weights, and the predictions where the model has some and the input is text."""
    return ["weights", "predictions"] if text is not None and model.manifest.predictors else ["weights"]


def _import_plot(options: str = "--png needs") -> ModuleType:
    try:
        from attention_client.display import plot  # noqa: PLC0415  # matplotlib is an extra, and slow to import
    except ModuleNotFoundError:
        fail(f"{options} matplotlib: pip install 'attention-service[plot]'")
    return plot
