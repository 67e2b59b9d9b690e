"""Keys and values of a prefix, kept for every site of a chain: blocks of rows that memories share."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from attention_server.domain.messages import Tokens
from attention_server.errors import InvalidRequest

Vectors = NDArray[np.float32]
Kept = NDArray[np.float32] | NDArray[np.float16]
Widths = tuple[tuple[int, int], ...]  # of k and v of each site

FLOAT = np.dtype(np.float32)
MAX_COPIED = 256  # rows of a block that is made anew, larger, when it is full
MAX_PIECES = 8  # beyond, short ones at the end are joined

_claims = threading.Lock()  # held for a comparison and an addition


class Block:
    """Rows of keys and values of every site, for consecutive positions. Rows are added behind, and never changed.

    Attributes:
        sites: k and v of each site, [capacity, width].
        capacity: the number of rows that it has room for.
        tokens, special: of the rows written: the shown form of each token, and whether the tokenizer added the token.
        error: the largest absolute difference between a kept number and the computed one.
        is_first: whether it begins a prefix, which every continuation shares and none copies.
    """

    __slots__ = ("_has_successor", "_written", "capacity", "error", "is_first", "sites", "special", "tokens")

    def __init__(self, widths: Widths, capacity: int, data_type: "np.dtype[Any]", *, is_first: bool) -> None:
        self.capacity = capacity
        self.is_first = is_first
        self.error = 0.0
        self.sites: list[tuple[Kept, Kept]] = [
            (np.empty((capacity, k), data_type), np.empty((capacity, v), data_type)) for k, v in widths
        ]
        self.tokens: list[str] = []
        self.special: list[bool] = []
        self._written = 0  # rows claimed
        self._has_successor = False

    @property
    def widths(self) -> Widths:
        """The widths of k and v of each site."""
        return tuple([(k.shape[1], v.shape[1]) for k, v in self.sites])

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return sum([k.nbytes + v.nbytes for k, v in self.sites])

    def claim(self, begin: int, rows: int) -> bool:
        """Claim rows behind the first `begin`; return whether these are the last ones written, and there is room."""
        with _claims:
            if self._written != begin or begin + rows > self.capacity:
                return False
            self._written += rows
            return True

    def succeed(self, length: int) -> bool:
        """Return whether the first rows are all that are written, and no larger block has replaced this one yet."""
        with _claims:
            if self.is_first or self._written != length or self._has_successor:
                return False
            self._has_successor = True
            return True

    def release(self, begin: int, rows: int) -> None:
        """Give claimed rows back that were not written."""
        with _claims:
            if self._written == begin + rows:
                self._written = begin

    def take_back(self) -> None:
        """Note that the larger block which was to replace this one is not kept."""
        with _claims:
            self._has_successor = False


class Piece(NamedTuple):
    """The first rows of a block."""

    block: Block
    length: int


class Past(NamedTuple):
    """The keys and values of a prefix.

    Attributes:
        pieces: of blocks, first to last.
        added: the number of rows at the end that are to be written.
        copied: bytes of earlier rows that were copied to make room for these.
        replaced: the full block that the last one replaces for these rows; None for none.
    """

    pieces: tuple[Piece, ...]
    added: int = 0
    copied: int = 0
    replaced: Block | None = None

    @classmethod
    def begin(cls, widths: Widths, rows: int, data_type: "np.dtype[Any]") -> "Past":
        """Return room for the rows of a prefix, in float32 or float16."""
        block = Block(widths, rows, data_type, is_first=True)
        block.claim(0, rows)
        return cls((Piece(block, rows),), rows)

    @classmethod
    def of(cls, keys: Vectors, values: Vectors) -> "Past":
        """Return the keys and values of one site, each [rows, width], as a prefix."""
        widths = ((keys.shape[1], values.shape[1]),)
        past = cls.begin(widths, len(keys), FLOAT)
        past.pieces[0].block.sites = [(keys, values)]
        return cls(past.pieces)

    @property
    def length(self) -> int:
        """The number of positions."""
        return sum([piece.length for piece in self.pieces])

    @property
    def widths(self) -> Widths:
        """The widths of k and v of each site."""
        return self.pieces[0].block.widths

    @property
    def data_type(self) -> "np.dtype[Any]":
        """The type of the kept numbers: float32 or float16."""
        return self.pieces[0].block.sites[0][0].dtype

    @property
    def tokens(self) -> tuple[str, ...]:
        """The shown form of the token of each position; empty strings for vectors."""
        return tuple([token for block, length in self.pieces for token in block.tokens[:length]])

    @property
    def special(self) -> tuple[bool, ...]:
        """Whether the tokenizer added the token of each position to the text."""
        return tuple([each for block, length in self.pieces for each in block.special[:length]])

    @property
    def blocks(self) -> Iterator[Block]:
        """The blocks that it holds, which further memories may hold too."""
        return (piece.block for piece in self.pieces)

    def extend(self, rows: int) -> "Past":
        """Return this prefix with room for rows behind it. It stays as it is itself.

        The rows are claimed at the end of the last block. If that is full, a larger one is made, with a copy of its
        rows if these are few. If the rows behind are claimed already, the prefix branches: the new rows are in a block
        apart, behind the shared rows.
        """
        *before, (block, length) = self.pieces
        if block.claim(length, rows):
            return Past((*before, Piece(block, length + rows)), rows)
        grows = block.succeed(length)
        replaced = block if grows else None
        if grows and length <= MAX_COPIED:
            return self._with_block(self.pieces[-1:], rows, length // 2, replaced)
        copied = _short(self.pieces) if len(self.pieces) > MAX_PIECES else ()
        return self._with_block(copied, rows, MAX_COPIED // 2 if grows else 0, replaced)

    def write_tokens(self, tokens: Tokens | None) -> None:
        """Write the tokens of the rows added; None for vectors."""
        block, length = self.pieces[-1]
        rows = slice(length - self.added, length)
        block.tokens[rows] = [""] * self.added if tokens is None else tokens.shown
        block.special[rows] = (tokens is not None and tokens.special) or [False] * self.added

    def write(self, site: int, keys: Vectors, values: Vectors) -> None:
        """Write the rows added: k and v of a site, [rows, width].

        Raises:
            InvalidRequest: a number is beyond the range of FP16, the format of the prefix.
        """
        block, length = self.pieces[-1]
        for kept, computed in zip(block.sites[site], (keys, values), strict=True):
            rows: Kept = computed
            if kept.dtype == np.float16:
                rows, error = as_half(computed)
                block.error = max(block.error, error)
            kept[length - self.added : length] = rows

    def release(self) -> None:
        """Give back the room for the rows added, which were not written."""
        block, length = self.pieces[-1]
        block.release(length - self.added, self.added)
        if self.replaced is not None:
            self.replaced.take_back()

    def read(self, site: int) -> list[tuple[Vectors, Vectors]]:
        """Return k and v of a site, each [rows, width], piece by piece: views of float32, casts of float16."""
        views = []
        for block, length in self.pieces:
            k, v = block.sites[site]
            views.append((k[:length].astype(np.float32, copy=False), v[:length].astype(np.float32, copy=False)))
        return views

    def _with_block(self, copied: Sequence[Piece], rows: int, spare: int, replaced: Block | None) -> "Past":
        """Return this prefix with a new block behind it, which begins with copies of its last pieces."""
        length = sum([piece.length for piece in copied])
        block = Block(self.widths, length + rows + spare, self.data_type, is_first=False)
        begin = 0
        for piece in copied:
            end = begin + piece.length
            for (k, v), (old_k, old_v) in zip(block.sites, piece.block.sites, strict=True):
                k[begin:end], v[begin:end] = old_k[: piece.length], old_v[: piece.length]
            block.error = max(block.error, piece.block.error)
            block.tokens += piece.block.tokens[: piece.length]
            block.special += piece.block.special[: piece.length]
            begin = end
        block.claim(0, length + rows)
        kept = self.pieces[: len(self.pieces) - len(copied)]
        return Past((*kept, Piece(block, length + rows)), rows, block.size * length // block.capacity, replaced)


def _short(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Return the last pieces that have together few rows."""
    rows, begin = 0, len(pieces)
    while begin and not pieces[begin - 1].block.is_first and rows + pieces[begin - 1].length <= MAX_COPIED:
        begin -= 1
        rows += pieces[begin].length
    return pieces[begin:]


def as_half(array: Vectors) -> tuple[NDArray[np.float16], float]:
    """Return an array as float16, and the largest absolute difference of a number.

    Raises:
        InvalidRequest: a number is beyond the range of FP16.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        most = np.finfo(np.float16).max
        raise InvalidRequest(
            f"keys and values reach {np.abs(array).max():g}, and FP16 ends at {most:g}; keep them as FP32",
            field="data_type",
        )
    return half, float(np.abs(half.astype(np.float32) - array).max())


class Continuation:
    """A sequence behind a prefix, and the room for its own keys and values if it is kept.

    Args:
        before: the prefix; None for none.
        keeps: whether the sequence is kept behind it.
        data_type: the format of a prefix that begins with the sequence.

    Attributes:
        before, keeps: as given.
        kept: the prefix with the sequence behind it, once it is computed; None where it is not kept, and once the
            store keeps it.
        copied: bytes of the prefix that were copied for this computation.
    """

    __slots__ = ("_data_type", "before", "copied", "keeps", "kept")

    def __init__(self, before: Past | None, *, keeps: bool, data_type: "np.dtype[Any]" = FLOAT) -> None:
        self._data_type = data_type
        self.before = before
        self.keeps = keeps
        self.kept: Past | None = None
        self.copied = 0

    @property
    def first(self) -> int:
        """The position of the sequence's first row."""
        return self.before.length if self.before is not None else 0

    def open(self, rows: int, widths: Widths) -> None:
        """Make room for the sequence, if it is kept; the widths are those of k and v of each site."""
        self.close()
        if not self.keeps:
            return
        self.kept = Past.begin(widths, rows, self._data_type) if self.before is None else self.before.extend(rows)
        self.copied = self.kept.copied

    def close(self) -> None:
        """Give the room back; the sequence is not kept."""
        if self.kept is not None:
            self.kept.release()
            self.kept = None

    def hand_over(self) -> None:
        """Leave the prefix with the sequence to the store, which keeps it: `close` gives no room back any more."""
        self.kept = None

    def pieces(self, site: int, keys: Vectors, values: Vectors) -> list[tuple[Vectors, Vectors]]:
        """Return k and v of a site for the prefix and the sequence; keep those of the sequence if asked.

        Args:
            site: its place among the sites with keys of the chain.
            keys: of the sequence, [T, width].
            values: of the sequence, [T, width].

        Raises:
            InvalidRequest: a number is beyond the range of FP16, in which the prefix is kept.
        """
        if self.kept is not None:
            self.kept.write(site, keys, values)
            return self.kept.read(site)
        return [*(self.before.read(site) if self.before is not None else ()), (keys, values)]

    def joined(self, site: int, keys: Vectors, values: Vectors) -> tuple[Vectors, Vectors]:
        """Return k and v of a site for the prefix and the sequence, each [1, S, width].

        These are views where one block holds all of them, and copies otherwise.
        """
        pieces = self.pieces(site, keys, values)
        if len(pieces) == 1:
            ((k, v),) = pieces
            return k[None], v[None]
        self.copied += sum([k.nbytes + v.nbytes for k, v in pieces])
        all_keys, all_values = zip(*pieces, strict=True)
        return np.concatenate(all_keys)[None], np.concatenate(all_values)[None]
