"""A site of a long sequence, computed in blocks of query rows.

A row needs no further row, so outputs are made block by block, and each block is dropped. The size of a block
follows from the shape alone: the bits of an answer depend neither on the number of slots nor on their load.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attention_server.inference.engine.protocol import Run
from attention_server.inference.flash import flash_rows
from attention_server.inference.head_weights import ROWS, HeadWeights, is_by_head
from attention_server.inference.layer import KEYS, LoadedLayer, Tensors
from attention_server.inference.masks import SiteMask, Vectors
from attention_server.inference.reading import Block
from attention_server.inference.reduction import Sums
from attention_server.inference.reductions import BY_BLOCK, LayerReductions
from attention_server.inference.row_statistics import entropy
from attention_server.inference.scores import split_heads

STRIPS = 16  # of blocks; each strip has sums of its own, so that the order of additions is fixed
MADE_OF_WEIGHTS: Mapping[str, Callable[[Vectors], Vectors]] = {"weights": lambda weights: weights, "entropy": entropy}
OF_ALL_KEYS = frozenset({"scores"})  # stages that masked keys have too


def compute_long(
    layer: LoadedLayer,
    tensors: Tensors,
    mask: SiteMask,
    wanted: frozenset[str],
    passed: frozenset[str],
    run: Run,
    reductions: LayerReductions,
) -> dict[str, Vectors]:
    """Compute a site of one sequence block by block; return the stages wanted that are not reduced.

    Args:
        layer: the site.
        tensors: q (or query), k and v; receives the tensors passed.
        mask: of the request and of the site.
        wanted: names of stages.
        passed: names of the site's tensors that later graphs read.
        run: the computation that this is a part of.
        reductions: take the stages that have a number for each query and key, or are made of such.
    """
    queries, keys = len(mask.positions), mask.keys
    of_rows = wanted - frozenset(KEYS)
    found: Tensors = {}
    further: Tensors = {}
    makes_weights = bool(of_rows & BY_BLOCK) or layer.change.makes_weights
    flash = layer.takes_flash and layer.is_flash(queries, keys) and mask.is_open and not makes_weights
    alone = of_rows - reductions.unread
    is_plain = mask.is_open and not passed and alone <= MADE_OF_WEIGHTS.keys() and reductions.takes_heads
    by_head = HeadWeights.of(layer, tensors["k"]) if is_plain and is_by_head(layer, queries, keys) else None
    if flash:
        size = flash_rows(queries)
    elif by_head is not None:
        size = ROWS
    else:
        size = layer.block_rows(queries, keys, seen=mask.most_keys, weights=makes_weights)
    cut = [name for name in layer.takes - set(KEYS) if name in tensors]

    def write(whole: Tensors, parts: Tensors, rows: slice) -> None:
        for name, part in parts.items():  # with a row for each query, in the last axis but one
            if name not in whole:
                whole.setdefault(name, np.empty((*part.shape[:-2], queries, part.shape[-1]), part.dtype))
            whole[name][..., rows, :] = part

    def block(rows: slice, sums: Sequence[Sums]) -> None:
        seen = slice(0, keys) if of_rows & OF_ALL_KEYS else mask.reach(rows)
        seen = seen if seen.stop > seen.start else slice(0, 1)  # rows without keys: a masked one gives zeros
        own: Tensors = {name: tensors[name][:, rows] for name in cut} | {name: tensors[name][:, seen] for name in KEYS}
        if by_head is not None:
            weights = by_head.of_rows(own, run, reductions.path)
            heads = ({name: MADE_OF_WEIGHTS[name](each[None]) for name in alone} for each in weights)
            reductions.add_heads(rows, seen, heads, sums)
            return
        added = mask.block(rows, seen)
        stages = layer.block_stages(own, added, mask.positions[rows], seen, of_rows, passed, run, flash=flash)
        write(further, {name: own[name] for name in passed}, rows)
        write(found, {name: stages[name] for name in (of_rows - BY_BLOCK) & stages.keys()}, rows)
        reductions.add(Block(rows, seen, added, {name: stages[name][0] for name in of_rows & BY_BLOCK}), sums)

    def strip(blocks: Sequence[slice]) -> list[Sums]:
        sums = reductions.sums()
        for rows in blocks:
            block(rows, sums)
        return sums

    reductions.close(run.map(strip, _strips(queries, size)))
    tensors.update(further)
    return found | {name: split_heads(tensors[name], layer.about.key_value_heads) for name in wanted & frozenset(KEYS)}


def _strips(rows: int, size: int) -> list[list[slice]]:
    """Cut rows into blocks, and these into strips: the last rows first, and the rest of a block in the end.

    The first block sees the most keys: a graph's arena that holds it suffices for the rest.
    """
    blocks = [slice(max(0, end - size), end) for end in range(rows, 0, -size)]
    count = -(-len(blocks) // STRIPS)
    return [blocks[begin : begin + count] for begin in range(0, len(blocks), count)]
