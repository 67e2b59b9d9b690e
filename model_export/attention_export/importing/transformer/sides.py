"""The sequences of a model, and the module that computes each: of most models one, of an encoder-decoder two."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attention_proto.attention.v1.attention_pb2 import Side as SideNumber
from torch import Tensor, nn
from torch.nn import functional

TOKENS, POSITIONS, TYPES = "tokens", "position_ids", "token_type_ids"


@dataclass(frozen=True)
class Side:
    """One sequence of a model.

    Attributes:
        number: in the manifest.
        prefix: of the names of its tensors in the traced graph.
        length: name of its length in the traced graph.
        argument: prefix of its arguments in the forward of the whole model.
        result: prefix of its results there.
    """

    number: "SideNumber.ValueType"
    prefix: str
    length: str
    argument: str
    result: str

    def name(self, tensor: str) -> str:
        """Return a tensor's name in the traced graph."""
        return self.prefix + tensor

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the inputs in a file by those in the traced graph."""
        return {self.name(each): each for each in (TOKENS, POSITIONS, TYPES)}


ALONE = Side(SideNumber.SIDE_TARGET, "", "T", argument="", result="")
SOURCE = Side(SideNumber.SIDE_SOURCE, "source_", "S", argument="", result="encoder_")
TARGET = Side(SideNumber.SIDE_TARGET, "", "T", argument="decoder_", result="decoder_")


def stacks(model: nn.Module) -> dict[Side, Any]:
    """Return the module that makes the last hidden state of each sequence, the source's first.

    In a model of one sequence it is the base model, or the decoder in it, such as OPT's: a head calls that one.
    """
    whole: Any = model
    if whole.config.is_encoder_decoder:
        return {SOURCE: whole.get_encoder(), TARGET: whole.get_decoder()}
    base = getattr(whole, "base_model", whole)
    return {ALONE: getattr(base, "decoder", base)}


def backbone(model: nn.Module) -> Any:
    """Return the module that makes the last hidden state, which a head reads."""
    *_, last = stacks(model).values()
    return last


def embeddings(model: nn.Module) -> dict[Side, nn.Embedding]:
    """Return the table of token embeddings of each sequence."""
    whole: Any = model
    found = stacks(model)
    return {side: (whole if side is ALONE else stack).get_input_embeddings() for side, stack in found.items()}


def arguments(tokens: Mapping[Side, Any]) -> dict[str, Any]:
    """Return the arguments of a model's forward for tokens [B, length] of each sequence."""
    return {f"{side.argument}input_ids": each for side, each in tokens.items()}


@contextmanager
def given_positions(stack: Any, positions: Tensor) -> Iterator[None]:
    """Let a stack with a table of positions, such as Marian's or BART's, read given rows of it.

    Args:
        stack: an encoder or a decoder that has no argument for positions; without such a table it is left as it is.
        positions: INT64 [B, length], from 0.
    """
    table = getattr(stack, "embed_positions", None)
    rows = getattr(table, "weight", getattr(table, "weights", None))
    if table is None or rows is None:
        yield
        return
    # A table that is no Embedding, such as M2M100's, counts the tokens that are no padding, behind padding's own row.
    first = getattr(table, "offset", 0) if isinstance(table, nn.Embedding) else table.padding_idx + 1
    table.forward = lambda *_, **__: functional.embedding(positions + first, rows)
    try:
        yield
    finally:
        del table.forward
