"""Masks as numbers that are added to scores: those of a request, those of a site, and their sum.

Masks of long sequences are made for some rows and keys at a time: a whole one has a number for every pair.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from attention_proto import masks
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest
from attention_proto.chains import CROSS, site_axes
from attention_proto.masks import Mask, additive, additive_block, reach
from numpy.typing import NDArray

from attention_server.domain.messages import NO_MASK, Array, Sequence
from attention_server.errors import InvalidRequest, join_path
from attention_server.inference import validation as check

Vectors = NDArray[np.float32]
Positions = NDArray[np.bool_] | None  # None for all
HIDDEN = np.float32(-np.inf)
LEAST = np.finfo(np.float32).min
FLOOR = np.float32(-(2.0**126))  # a quarter of LEAST; scores vanish in rounding next to either
MAX_SITE_MASKS = 64  # kept
MAX_KEPT_PAIRS = 256 * 256  # queries x keys of a mask that is kept
MAX_WHOLE_PAIRS = 256 * 256  # queries x keys of a request's mask that is made whole
BLOCK_ROWS = 128  # in which a long mask is looked through

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class LongMask:
    """The sum of masks over T queries and S keys, made by blocks.

    Attributes:
        masks: each with arrays that are broadcastable to [H, T, S].
        queries, keys: T and S.
        first: the position of the first query among the keys, behind a prefix; 0 for the alignment of each mask.
        chosen: the query positions of its rows; None for all.
    """

    masks: tuple[Mask, ...]
    queries: int
    keys: int
    first: int = 0
    chosen: Rows | None = None

    def take(self, rows: Rows) -> "LongMask":
        """Return the mask of some rows."""
        return replace(self, chosen=rows)

    def beside(self, mask: Mask) -> "LongMask":
        """Return the sum of this mask and one more."""
        return replace(self, masks=(*self.masks, mask))

    def block(self, rows: slice, keys: slice) -> Vectors:
        """Return some rows and keys, float32 [1 or H, rows, keys], -inf only where a key is hidden."""
        at = self._rows[rows]
        parts = [additive_block(each, self.queries, self.keys, at, keys, self.first) for each in self.masks]
        return _sum(parts, biased=any(each.bias is not None for each in self.masks))

    def reach(self, rows: slice) -> tuple[Rows, Rows]:
        """Return for each row the first key that bands leave, and the one behind the last: equal for none."""
        ends = [reach(each, self.queries, self.keys, self._rows[rows], self.first) for each in self.masks]
        first, last = (np.array(each) for each in zip(*ends, strict=True))
        return first.max(0), np.maximum(first.max(0), last.min(0))

    @cached_property
    def is_band(self) -> bool:
        """Whether its rows follow one another, and distances alone decide which keys they see."""
        has_arrays = any(each.allowed is not None or each.bias is not None for each in self.masks)
        return not has_arrays and _follow(self._rows)

    def unmasked(self) -> tuple[Positions, Positions]:
        """Return whether each row may attend, and whether each key is attended, [S]; None for all."""
        attended = np.zeros(self.keys, np.bool_)
        if all(each.allowed is None and each.bias is None for each in self.masks):
            begin, end = self.reach(slice(None))
            changes = np.zeros(self.keys + 1, np.intp)
            np.add.at(changes, begin, 1)
            np.add.at(changes, end, -1)
            return _unless_all(begin < end), _unless_all(np.cumsum(changes)[:-1] > 0)
        attending = np.zeros(len(self._rows), np.bool_)
        for start in range(0, len(self._rows), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            left = self.block(rows, slice(0, self.keys)) > HIDDEN
            attending[rows] = np.any(left, axis=(0, 2))
            attended |= np.any(left, axis=(0, 1))
        return _unless_all(attending), _unless_all(attended)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for each in self.masks for array in (each.allowed, each.bias) if array is not None)

    @cached_property
    def _rows(self) -> Rows:
        return np.arange(self.queries) if self.chosen is None else self.chosen


@dataclass(frozen=True, eq=False)
class LimitedMasks:
    """The masks of a request of which some are for some sites alone.

    Attributes:
        by_site: the sum of the masks of each site that a request can mask, by the site's name; None for none.
    """

    by_site: Mapping[str, Vectors | LongMask | None]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays; sites with the same masks have the same sum."""
        return sum({id(each): each.nbytes for each in self.by_site.values() if each is not None}.values())


RequestMask = Vectors | LongMask | LimitedMasks | None


def at_site(added: RequestMask, name: str) -> Vectors | LongMask | None:
    """Return the request's mask at a site by its name."""
    return added.by_site[name] if isinstance(added, LimitedMasks) else added


def is_long(added: RequestMask) -> bool:
    """Return whether a request's mask is made by blocks."""
    each = added.by_site.values() if isinstance(added, LimitedMasks) else (added,)
    return any(isinstance(mask, LongMask) for mask in each)


@dataclass(frozen=True)
class SiteMask:
    """The mask of a site by blocks: that of the request and the site's own.

    Attributes:
        added: of the request, [1 or H, rows, S]; None for none.
        own: of the site.
        positions: of the rows among the keys.
        keys: S.
    """

    added: "Vectors | LongMask | None"
    own: Mask
    positions: Rows
    keys: int

    @property
    def is_open(self) -> bool:
        """Whether there is no mask."""
        return self.added is None and self.own.is_open

    def block(self, rows: slice, keys: slice) -> Vectors | None:
        """Return some rows and keys, float32 [1 or H, rows, keys]; None where there is no mask.

        Blocks of a window are equal, but those at its ends: the latest is kept.
        """
        if not self._is_band:
            return self._block(rows, keys)
        shape = (rows.stop - rows.start, int(keys.start - self.positions[rows.start]), keys.stop - keys.start)
        latest, block = self._latest.get("block", (None, None))
        if latest != shape:
            block = self._block(rows, keys)
            self._latest["block"] = shape, block
        return block

    def _block(self, rows: slice, keys: slice) -> Vectors | None:
        added = self.added.block(rows, keys) if isinstance(self.added, LongMask) else self.added
        if isinstance(self.added, np.ndarray):
            added = self.added[:, rows, keys]
        if self.own.is_open:
            return added
        return add_masks(added, additive_block(self.own, self.keys, self.keys, self.positions[rows], keys))

    def reach(self, rows: slice) -> slice:
        """Return the keys that one of the rows may attend to by causality and windows; empty for none."""
        begin, end = (each[rows] for each in self._ends)
        seeing = begin < end
        return slice(int(begin[seeing].min()), int(end[seeing].max())) if seeing.any() else slice(0, 0)

    @property
    def most_keys(self) -> int:
        """The most keys between the first and the last that a row sees by causality and windows."""
        begin, end = self._ends
        return int((end - begin).max(initial=0))

    @cached_property
    def _ends(self) -> tuple[Rows, Rows]:
        """The first key that each row may attend to, and the one behind the last."""
        begin, end = reach(self.own, self.keys, self.keys, self.positions)
        if isinstance(self.added, LongMask):
            first, last = self.added.reach(slice(None))
            begin, end = np.maximum(begin, first), np.minimum(end, last)
        return begin, end

    @cached_property
    def _is_band(self) -> bool:
        added_is = self.added is None or (isinstance(self.added, LongMask) and self.added.is_band)
        return not self.is_open and added_is and _follow(self.positions)

    @cached_property
    def _latest(self) -> dict[str, tuple[tuple[int, int, int], Vectors | None]]:
        return {}


def _follow(rows: Rows) -> bool:
    """Return whether each position is the one behind that before it."""
    return bool((np.diff(rows) == 1).all())


def requested_mask(
    sequence: Sequence, mask: Mask, manifest: Manifest, layer: Layer, queries: int, keys: int, first: int
) -> RequestMask:
    """Add up the request's mask and the sequence's own.

    Args:
        sequence: as sent.
        mask: the request's.
        manifest: of the model.
        layer: the mask may differ by its heads.
        queries: T.
        keys: S.
        first: the position of the first query among the keys, behind a prefix; 0 for the alignment of the mask.

    Returns:
        Float32 [1 or H, T, S], -inf only where a key is hidden; of a long sequence its parts; None for no mask. Where
        the masks of sites differ, those of each.

    Raises:
        InvalidRequest: a mask does not fit.
    """
    given: list[tuple[Mask, frozenset[str] | None]] = []
    for each, path in ((mask, ""), (sequence.mask, sequence.path)):
        if each is NO_MASK:
            continue
        named = check.mask_layers(each, manifest, join_path(path, "mask"))
        if each.is_open and named is not None:
            raise InvalidRequest("there is no mask for these layers", field=join_path(path, "mask.layers"))
        if each.is_open:
            continue
        sites = {one.heads: one for one in manifest.layers if named is not None and one.name in named}
        for site in sites.values() if named is not None else (layer,):
            check.mask(each, site, queries, keys, join_path(path, "mask"))
        given.append((each, named))
    if all(named is None for _, named in given):
        return _whole_or_long([each for each, _ in given], queries, keys, first)
    by_site: dict[str, Vectors | LongMask | None] = {}
    sums: dict[tuple[int, ...], Vectors | LongMask | None] = {}
    for site in manifest.layers:
        if site_axes(site, manifest) != CROSS:
            continue
        own = tuple([i for i, (_, named) in enumerate(given) if named is None or site.name in named])
        if own not in sums:
            sums[own] = _whole_or_long([given[i][0] for i in own], queries, keys, first)
        by_site[site.name] = sums[own]
    return LimitedMasks(by_site) if len(sums) > 1 else by_site[layer.name]


def _whole_or_long(given: Items[Mask], queries: int, keys: int, first: int) -> Vectors | LongMask | None:
    """Return the sum of masks, that of a long sequence by its parts; None for none."""
    if not given:
        return None
    if queries * keys > MAX_WHOLE_PAIRS:
        return LongMask(tuple(given), queries, keys, first)
    parts = [additive(each, queries, keys, first) for each in given]
    return _sum(parts, biased=any(each.bias is not None for each in given))


def _sum(parts: Items[Vectors], *, biased: bool) -> Vectors:
    """Return the sum of masks, of which some may have a bias."""
    if len(parts) == 1:
        return raise_low_rows(parts[0]) if biased else parts[0]
    # The sum of two finite float32 numbers may overflow float32.
    return raise_low_rows(sum(parts[1:], parts[0].astype(np.float64)))


def site_mask(
    queries: int, keys: int, *, causal: bool, window: int, positions: NDArray[np.intp] | None = None
) -> Vectors | None:
    """Return the mask of a site itself, float32 [1, T, S], read-only; None where it hides no key.

    Args:
        queries: T.
        keys: S.
        causal: whether a query attends to keys at its own position and before alone.
        window: a query attends to keys at a distance below this number; 0 for any distance.
        positions: of the queries among the keys, [T]; None for those from 0.
    """
    if not causal and not window:
        return None
    if positions is not None:
        return _mask_of_rows(positions, keys, causal=causal, window=window)
    make = _kept_site_mask if queries * keys <= MAX_KEPT_PAIRS else _site_mask
    return make(queries, keys, causal=causal, window=window)


def _site_mask(queries: int, keys: int, *, causal: bool, window: int) -> Vectors | None:
    mask = additive(masks.site_mask(causal=causal, window=window), queries, keys)
    if mask.min() > HIDDEN:
        return None
    mask.flags.writeable = False
    return mask


def _mask_of_rows(positions: NDArray[np.intp], keys: int, *, causal: bool, window: int) -> Vectors | None:
    """Return the mask of a site for queries at some positions, [1, T, S]; None where it hides no key."""
    distance = np.arange(keys) - positions[:, None]
    hidden = distance > 0 if causal else np.zeros(distance.shape, np.bool_)
    if window:
        hidden |= np.abs(distance) >= window
    return np.where(hidden, HIDDEN, np.float32(0))[None] if hidden.any() else None


_kept_site_mask = lru_cache(MAX_SITE_MASKS)(_site_mask)


def mask_parts(added: RequestMask) -> list[Array | str | None]:
    """Return the parts of a mask: equal for equal masks."""
    if isinstance(added, LimitedMasks):
        return [part for name, each in added.by_site.items() for part in (name, *mask_parts(each))]
    if not isinstance(added, LongMask):
        return [added]
    of_bands = f"{added.queries} {added.keys} {added.first}"
    parts: list[Array | str | None] = [of_bands]
    for each in added.masks:
        parts += [f"{each.causal} {each.window}", each.allowed, each.bias]
    return parts


def add_masks(first: Vectors | None, second: Vectors | None) -> Vectors | None:
    """Return the sum of two masks or biases, which broadcast; None for none.

    A row of which no key is left stays hidden, and one that has low numbers alone is raised; see `raise_low_rows`.
    """
    if first is None or second is None:
        return second if first is None else first
    return raise_low_rows(np.add(first, second, dtype=np.float64))


def raise_low_rows(added: NDArray[np.floating[Any]]) -> Vectors:
    """Return biases as float32, of which a graph takes only -inf for hidden.

    onnxruntime's Attention treats a row of which no score is above float32's least as hidden whole. Softmax does not
    change when a row is shifted, so a row with a largest bias below FLOOR is shifted up, to a largest bias of FLOOR.

    Args:
        added: [1 or H, T, S], float32 or float64; finite or -inf.
    """
    largest = added.max(-1, keepdims=True)
    if largest.min() < FLOOR:
        low = (largest < FLOOR) & (largest > HIDDEN)
        added = added + np.where(low, FLOOR - largest, 0).astype(added.dtype)
    if added.dtype == np.float32:
        return added
    return np.where(added == HIDDEN, HIDDEN, np.maximum(added, LEAST)).astype(np.float32)


def unmasked(added: RequestMask) -> tuple[Positions, Positions]:
    """Return whether each query position may attend, [T], and each key position is attended, [S]; None for all.

    Where the masks of sites differ, each position counts as one that does: what one site hides, another may read.
    """
    if added is None or isinstance(added, LimitedMasks):
        return None, None
    if isinstance(added, LongMask):
        return added.unmasked()
    left = added > HIDDEN
    return _unless_all(np.any(left, axis=(0, 2))), _unless_all(np.any(left, axis=(0, 1)))


def _unless_all(positions: NDArray[np.bool_]) -> Positions:
    return None if positions.all() else positions
