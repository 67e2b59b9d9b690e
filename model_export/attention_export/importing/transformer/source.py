"""A checkpoint folder of `transformers`: its model without values, and the values, read one at a time."""

import contextlib
import copy
import inspect
import json
import logging as standard_logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.utils import GENERATION_CONFIG_NAME, logging

from attention_export.importing import ImportFailure, reason
from attention_export.importing.transformer.files import Reader, StoredTensor, stored_tensors

BASE = "base"
CLASSES: dict[str, Any] = {  # of each task, by the class of the config; those that programs register too
    BASE: modeling_auto.MODEL_MAPPING,
    "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "masked-lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
}
ENDINGS = {  # of the names of classes
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForConditionalGeneration": "seq2seq-lm",
    "MTModel": "seq2seq-lm",
}
TWO_SIDED = (BASE, "seq2seq-lm")  # the tasks of an encoder-decoder
OTHER_INPUTS = ("pixel_values", "pixel_values_videos", "input_features", "input_values")  # pixels and sound
LISTED = 6
START_TOKEN = "decoder_start_token_id"  # noqa: S105 # no secret, a field of config.json


@dataclass(frozen=True)
class Source:
    """A checkpoint as `transformers` understands it.

    Attributes:
        folder: of config.json and weights.
        task: a key of `CLASSES`.
        config: of the model.
        skeleton: the model with placeholders in place of parameters; buffers are real. In eval mode.
        missing: parameters that no file has: the skeleton's are random.
        notes: sentences on tensors and heads that are left out.
    """

    folder: Path
    task: str
    config: PretrainedConfig
    skeleton: PreTrainedModel
    missing: frozenset[str]
    notes: tuple[str, ...]
    _origins: dict[str, "_Origin"] = field(repr=False)

    @property
    def architecture(self) -> str:
        """The class, `BertForMaskedLM`."""
        return type(self.skeleton).__name__

    @property
    def start_token(self) -> int | None:
        """The token that a decoder's sequences begin with; None where no file says it."""
        token: int | None = getattr(self.config, START_TOKEN, None)
        if token is None and self.config.is_encoder_decoder and (self.folder / GENERATION_CONFIG_NAME).exists():
            token = GenerationConfig.from_pretrained(self.folder, local_files_only=True).decoder_start_token_id
        return token

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a decoder's sequences; empty where no file says them."""
        tokens = getattr(self.config, "eos_token_id", None)
        if (self.folder / GENERATION_CONFIG_NAME).exists():
            tokens = GenerationConfig.from_pretrained(self.folder, local_files_only=True).eos_token_id
        return tuple(tokens) if isinstance(tokens, list) else () if tokens is None else (tokens,)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model with its values, in float32, eval mode and eager attention; it has a config of its own."""
        model, _ = _load(
            type(self.skeleton), self.config, {k: v.read() for k, v in stored_tensors(self.folder).items()}
        )
        return model

    def value(self, name: str) -> Tensor:
        """Read a parameter or a persistent buffer, as float32 where it is a number of floating point.

        Raises:
            ImportFailure: no file has it.
        """
        if name in self._origins:
            return _single(self._origins[name]())
        if name in self.missing:
            raise ImportFailure(
                f"the checkpoint has no {name}, which {self.architecture} needs: it would be random. Choose another "
                "--task, or a folder that has it"
            )
        return _single(self.model.state_dict()[name])  # transformers computes it of several tensors

    def value_to_run(self, name: str) -> Tensor:
        """Read a parameter; one that no file has is random, as the source that is run has some that nothing takes."""
        return self.skeleton.get_parameter(name) if name in self.missing else self.value(name)


@dataclass(frozen=True)
class _Origin:
    """A parameter as a view of a tensor in a file."""

    read: Reader
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def __call__(self) -> Tensor:
        return self.read().contiguous().as_strided(self.shape, self.stride, self.offset)


def load_source(folder: Path, task: str | None = None) -> Source:
    """Read a checkpoint's config and the names and shapes of its tensors.

    Args:
        folder: config.json and model.safetensors or pytorch_model.bin, sharded or not.
        task: a key of `CLASSES`; None for the one in config.json's `architectures`.

    Raises:
        ImportFailure: the folder is not a checkpoint that `transformers` loads without code of its own, or the model
            is of a kind that is not imported.
    """
    config = _read_config(folder)
    notes: list[str] = []
    task = task or _task_of(config, notes)
    cls = _model_class(config, task)
    stored = stored_tensors(folder)
    # Memory that is never touched costs nothing; it has a shape and an address, by which a parameter is found again.
    placeholders = {k: torch.empty(v.shape) if v.floating else v.read() for k, v in stored.items()}
    skeleton, info = _load(cls, config, placeholders)
    _refuse_other_inputs(skeleton)
    _refuse_states(skeleton)
    origins = _origins(skeleton, placeholders, stored)
    for name, buffer in skeleton.named_buffers():
        if name in origins:
            buffer.copy_(origins[name]())
    missing = frozenset(info["missing_keys"])
    notes += _left_over(skeleton, info["unexpected_keys"])
    return Source(folder, task, config, skeleton, missing, tuple(notes), origins)


def _read_config(folder: Path) -> PretrainedConfig:
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ImportFailure(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ImportFailure(f"{path} is not an object")
    if "auto_map" in fields:
        raise ImportFailure(
            f"{path} has `auto_map`: the checkpoint brings code of its own, which is never run. If a class of "
            "transformers computes the same, take `auto_map` out of a copy of the file"
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each config has errors of its own
        raise ImportFailure(
            f"{path} is not a config that transformers {transformers.__version__} knows: {reason(error)}"
        ) from (error)
    if getattr(config, "quantization_config", None) is not None:
        raise ImportFailure(f"{path} has `quantization_config`: only float weights are imported")
    return config


def _classes(task: str, config: PretrainedConfig) -> tuple[type[PreTrainedModel], ...]:
    """Return the classes of a task for a config; several where transformers has some for the same config."""
    found = CLASSES[task].get(type(config), ())
    return found if isinstance(found, tuple) else (found,)


def _task_of(config: PretrainedConfig, notes: list[str]) -> str:
    """Return the task of the checkpoint's own class, or `base` with a note on the head that is left out."""
    architectures = config.architectures or [""]
    name = architectures[0]
    for ending, task in ENDINGS.items():
        # Models of sound and images have names that end alike: the inputs of the base class decide.
        if name.endswith(ending) and (task != "seq2seq-lm" or _classes(task, config)):
            return task
    if name and name not in (cls.__name__ for cls in _classes(BASE, config)):
        notes.append(f"the head of {name} is left out")
    return BASE


def _model_class(config: PretrainedConfig, task: str) -> type[PreTrainedModel]:
    if task not in CLASSES:
        raise ImportFailure(f"--task {task} is none of {', '.join(CLASSES)}")
    if config.is_encoder_decoder and task not in TWO_SIDED:
        raise ImportFailure(
            f"config.json: {config.model_type} has an encoder and a decoder, which are imported with --task "
            f"{' or '.join(TWO_SIDED)}, not {task}"
        )
    classes = _classes(task, config)
    if not classes:
        others = [other for other in CLASSES if _classes(other, config)]
        raise ImportFailure(
            f"transformers {transformers.__version__} has no {task} model of type {config.model_type}"
            + (f"; --task {', '.join(others)} is there" if others else "")
        )
    named = [cls for cls in classes if cls.__name__ in (config.architectures or ())]
    return (named or classes)[0]


def _refuse_other_inputs(model: PreTrainedModel) -> None:
    base: Any = model.base_model
    modalities = (base.input_modalities,) if isinstance(base.input_modalities, str) else base.input_modalities
    others = [name for name in OTHER_INPUTS if name in inspect.signature(base.forward).parameters]
    if base.main_input_name != "input_ids" or set(modalities) != {"text"} or others:
        taken = ", ".join(f"`{name}`" for name in others or [base.main_input_name])
        raise ImportFailure(
            f"{type(base).__name__} takes {taken} ({', '.join(modalities)}); only models of text, that take "
            "`input_ids` alone, are imported"
        )


def _refuse_states(model: PreTrainedModel) -> None:
    if model._is_stateful:  # noqa: SLF001 # of every class whose layers keep one
        raise ImportFailure(
            f"{type(model.base_model).__name__} has state-space or recurrent layers, which carry a state from token to "
            "token; only models that mix tokens by attention alone are imported"
        )


def _single(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and progress bars of transformers and PyTorch; errors and notes carry the news."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(standard_logging.ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load(
    cls: type[PreTrainedModel], config: PretrainedConfig, tensors: dict[str, Tensor]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Make a model of tensors by the names of a file, renamed and converted by transformers."""
    with quiet():
        try:
            loaded: Any = cls.from_pretrained(
                None,
                config=copy.deepcopy(config),  # the attention's implementation is written into it
                state_dict=tensors,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with both shapes
            )
        except Exception as error:  # each model has errors of its own
            raise ImportFailure(f"transformers cannot load {cls.__name__}: {reason(error)}") from error
    model, info = loaded
    if info["mismatched_keys"] or info["error_msgs"]:
        name, *shapes = next(iter(info["mismatched_keys"]), (info["error_msgs"], "", ""))
        raise ImportFailure(f"{name} does not fit {cls.__name__}: {shapes[0]} in the file, {shapes[1]} by config.json")
    model.eval().requires_grad_(requires_grad=False)
    return model, info


def _origins(
    model: PreTrainedModel, placeholders: dict[str, Tensor], stored: dict[str, StoredTensor]
) -> dict[str, _Origin]:
    """Find each parameter's file again, by the address of its placeholder."""
    names = {p.untyped_storage().data_ptr(): name for name, p in placeholders.items() if p.numel()}
    return {
        name: _Origin(stored[names[address]].read, tuple(value.shape), value.stride(), value.storage_offset())
        for name, value in model.state_dict().items()
        if (address := value.untyped_storage().data_ptr()) in names
        and value.untyped_storage().nbytes() == 4 * math.prod(stored[names[address]].shape)
    }


def _left_over(model: PreTrainedModel, names: set[str]) -> list[str]:
    """Return a note on tensors of heads that were left out.

    Raises:
        ImportFailure: a tensor belongs to a module of the base model, which would compute a different function.
    """
    base = model.base_model
    prefix = f"{model.base_model_prefix}." if base is not model else ""
    modules = {name for name, _ in base.named_modules() if name}
    buffers = {name for name, _ in model.named_buffers()}
    left = sorted(name for name in names if name not in buffers)
    for name in left:
        path = name.removeprefix(prefix).split(".")
        parents = {".".join(path[:length]) for length in range(1, len(path))}
        if (not prefix or name.startswith(prefix)) and parents & modules:
            raise ImportFailure(
                f"{name} is in the checkpoint and not in {type(model).__name__} as config.json describes it: the model "
                "would compute something else"
            )
    if not left:
        return []
    more = f", and {len(left) - LISTED} more" if len(left) > LISTED else ""
    return [f"left out of the checkpoint: {', '.join(left[:LISTED])}{more}"]
