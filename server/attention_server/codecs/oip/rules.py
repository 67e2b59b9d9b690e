"""Rules of the Open Inference Protocol: which outputs, options and parameters a request may have."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attention_proto.masks import UNBOUNDED, Mask
from attention_proto.stages import OPTIONS, PREDICTIONS, Option
from attention_proto.text import TRUNCATES, Truncate

from attention_server.codecs.document import (
    choice,
    fields,
    float32,
    parse,
    read_ablate,
    read_option,
    read_sample,
    read_spans,
    typed,
)
from attention_server.codecs.duplicates import refuse_duplicates
from attention_server.codecs.oip.content import CONTENT_TYPE, check_content_type, is_neutral
from attention_server.codecs.oip.messages import InferRequest, Parameter, Parameters
from attention_server.domain.messages import NO_MASK, Ablation, OutputSpec, Sample
from attention_server.errors import InvalidRequest, NotFound, TooLarge, join_path

TOKENS = ("tokens", "memory_tokens")  # outputs that are not stages
TRUNCATED = ("truncated_tokens", "memory_truncated_tokens")  # of these, [B]
PREDICTION_PARTS = ("name", "label", "probability", "row", "id")
TOP_PARTS = ("top.id", "top.label", "top.probability")  # of predictions with the option `top`
TOLD = ("ablate", "score_temperature")  # request parameters that the response repeats
MASK_PARAMETERS = ("causal", "window_left", "window_right", "mask_layers")
REQUEST_PARAMETERS = (*MASK_PARAMETERS, "memory", "truncate", "timeout", *TOLD)
OUTPUT_PARAMETERS = ("stage", *(name for name in OPTIONS if name != "as"))  # an output's own name is the alias
# Parameters of the wire format: oip/json.py, oip/proto.py and oip/content.py read them.
WIRE_PARAMETERS = (
    "binary_data",
    "binary_data_output",
    "binary_data_size",
    "triton_enable_empty_final_response",
    CONTENT_TYPE,
)
# The protocol's names of domain fields.
FIELD_NAMES = {
    "mask.allowed": "allowed",
    "mask.bias": "bias",
    "mask.window": "parameters.window_left, parameters.window_right",
    "mask.layers": "parameters.mask_layers",
    "memory": "parameters.memory",
    "truncate": "parameters.truncate",
    "score_temperature": "parameters.score_temperature",
}


def request_parameters(infer: InferRequest) -> Mapping[str, Parameter]:
    """Return the request's own parameters, without those of an output or of the wire format.

    Raises:
        InvalidRequest: a parameter is unknown.
    """
    check_content_type(infer.parameters, "parameters")
    own = {
        name: value
        for name, value in infer.parameters.items()
        if "." not in name and name not in WIRE_PARAMETERS and not is_neutral(name, value)
    }
    fields(own, "parameters", REQUEST_PARAMETERS)
    return own


def mask_of(parameters: Parameters, *, has_tensors: bool) -> Mask:
    """Return the mask that the parameters `causal`, `window_left`, `window_right` and `mask_layers` describe.

    Args:
        parameters: of the request.
        has_tensors: whether the request has masks as tensors, which `mask_layers` are for too.

    Raises:
        InvalidRequest: a parameter has the wrong type or value.
    """
    mask = Mask(
        causal=choice(parameters, "causal", ("none", "top_left", "bottom_right"), "none", "parameters"),
        window=(
            typed(parameters, "window_left", int, UNBOUNDED, "parameters"),
            typed(parameters, "window_right", int, UNBOUNDED, "parameters"),
        ),
        layers=mask_layers(parameters),
    )
    return NO_MASK if mask.is_open and (has_tensors or not mask.layers) else mask


def mask_layers(parameters: Parameters) -> tuple[str, ...]:
    """Return the layers that all masks of a request are for; empty for all.

    Raises:
        InvalidRequest: the parameter is not a string.
    """
    names: str = typed(parameters, "mask_layers", str, "", "parameters")
    return tuple(names.split(",")) if names else ()


def memory_id(parameters: Parameters) -> str:
    """Return the id of the kept memory that a request names; empty when it names none.

    Raises:
        InvalidRequest: the id is not a string.
    """
    id_: str = typed(parameters, "memory", str, "", "parameters")
    return id_


def truncation(parameters: Parameters) -> Truncate:
    """Return where tokens of texts are dropped that are more than the model reads.

    Raises:
        InvalidRequest: there is no such truncation.
    """
    side: Truncate = choice(parameters, "truncate", TRUNCATES, "none", "parameters")
    return side


def ablations(parameters: Parameters) -> tuple[Ablation, ...]:
    """Return the heads that a request switches off, which are sent as the text of a JSON list.

    Raises:
        InvalidRequest: it is no such list.
    """
    text = typed(parameters, "ablate", str, "", "parameters")
    content = {"ablate": _json(text, 'list, such as [{"heads": [1]}]', "parameters.ablate") if text else None}
    return read_ablate(content, "parameters")


def score_temperature(parameters: Parameters) -> float | None:
    """Return the divisor of the scores; None for nothing.

    Raises:
        InvalidRequest: it is no number.
    """
    return float32(parameters, "score_temperature", "parameters")


def timeout(parameters: Parameters) -> float | None:
    """Return the parameter `timeout`, sent in microseconds, in seconds; None for no limit.

    Raises:
        InvalidRequest: the timeout is not an integer of at least 0.
    """
    microseconds = parameters.get("timeout", 0)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise InvalidRequest("must be an integer number of microseconds, 0 or above", field="parameters.timeout")
    return microseconds / 1e6 if microseconds else None


def output_options(infer: InferRequest) -> list[Parameters]:
    """Return the options of each output: its own parameters, and the request's parameters named OUTPUT.OPTION.

    Raises:
        InvalidRequest: an option is unknown, or belongs to an output that was not requested or takes no options.
    """
    named: dict[str, dict[str, Parameter]] = {requested.name: {} for requested in infer.outputs}
    for name, value in infer.parameters.items():
        output, dot, option = name.rpartition(".")
        if not dot:
            continue
        if output not in named:
            raise InvalidRequest(
                f"names no output that is asked for: {', '.join(named) or 'none is named'}", field=f"parameters.{name}"
            )
        named[output][option] = value
    options: list[Parameters] = []
    for i, requested in enumerate(infer.outputs):
        check_content_type(requested.parameters, f"outputs[{i}].parameters")
        own = {name: value for name, value in requested.parameters.items() if name not in WIRE_PARAMETERS}
        merged: Parameters = {**own, **named[requested.name]}
        fields(merged, f"outputs[{i}].parameters", OUTPUT_PARAMETERS)
        if merged and not is_computed(requested.name):
            raise InvalidRequest(f"{requested.name} takes no options", field=f"outputs[{i}].parameters")
        options.append(merged)
    return options


def is_computed(name: str) -> bool:
    """Return whether an output is a stage or predictions; tokens and their numbers are not."""
    return name not in (*TOKENS, *TRUNCATED)


def output_spec(name: str, options: Parameters, path: str) -> OutputSpec:
    """Return the domain's specification of an output.

    Args:
        name: a stage's name, or any name when the option `stage` names the stage.
        options: the output's options.
        path: the output's path in the request, for errors.

    Raises:
        InvalidRequest: an option has the wrong type or value.
    """
    given = {option: _option(OPTIONS[option], options, path) for option in options if option in OPTIONS}
    if _is_predictions(name):
        return OutputSpec(PREDICTIONS, path=path, **given)
    return OutputSpec(typed(options, "stage", str, name, path), name, path=path, **given)


def _sample(text: str, path: str) -> Sample | None:
    """Return a sample, which is sent as the text of a JSON object."""
    return read_sample(_json(text, 'object, such as {"temperature": 0.7}', path), path) if text else None


def _json(text: str, expected: str, path: str) -> object:
    """Parse a parameter that is the text of a JSON document."""
    try:
        content = parse(text.encode())
        refuse_duplicates(text.encode(), content)
    except InvalidRequest as error:
        raise InvalidRequest(f"must be a JSON {expected}", field=path) from error
    return content


@contextmanager
def protocol_field_names() -> Iterator[None]:
    """Rename the field of an error from the domain's name to the protocol's."""
    try:
        yield
    except (InvalidRequest, TooLarge, NotFound) as error:
        if error.field.startswith("ablate"):
            raise type(error)(error.message, field=f"parameters.{error.field}") from error
        if error.field not in FIELD_NAMES:
            raise
        raise type(error)(error.message, field=FIELD_NAMES[error.field]) from error


def _is_predictions(name: str) -> bool:
    stem, _, part = name.partition(".")
    return stem == PREDICTIONS and part in ("", *PREDICTION_PARTS, "top", *TOP_PARTS)


def _option(option: Option, options: Parameters, path: str) -> Any:
    """Return an option. The protocol has no lists: a list is one value, or a string such as "0,2"; nor objects."""
    sent = options[option.name]
    if option.kind == "sample":
        return _sample(typed(options, option.name, str, "", path), join_path(path, option.name))
    if option.kind == "spans":
        field = join_path(path, option.name)
        text = typed(options, option.name, str, "", path)
        return read_spans(_json(text, 'object, such as {"first": [0, 5]}', field), field) if text else ()
    if option.kind == "strings":
        names = typed(options, option.name, str, "", path)
        return tuple(names.split(",")) if names else ()
    if option.kind != "integers":
        return read_option(option, options, path)
    if not isinstance(sent, str):
        return read_option(option, {option.name: None if sent is None else [sent]}, path)
    try:
        numbers = [int(each) for each in sent.split(",")]
    except ValueError as error:
        raise InvalidRequest("must be integers, with commas between them", field=f"{path}.{option.name}") from error
    return read_option(option, {option.name: numbers}, path)
