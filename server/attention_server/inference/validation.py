"""The rules about tensors, masks and sources of a request, for all protocols."""

import math
import re

import numpy as np
from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Side
from attention_proto.chains import CROSS, has_source, site_axes, target_chain
from attention_proto.folder import TRANSFORMER
from attention_proto.masks import UNBOUNDED, Mask
from attention_proto.offers import NotOfferedError, chosen_layers
from attention_proto.stages import DATA_TYPES, STAGES
from numpy.typing import NDArray

from attention_server.domain.limits import MAX_SECONDS
from attention_server.domain.messages import Array, MemoryRequest, Sequence
from attention_server.errors import InvalidRequest, join_path

CROSS_ATTENTION = "cross_attention"
DOT_PRODUCT = "dot_product"
SOURCES = "give memory_text, memory_token_ids or memory"
MEMORY_ID = re.compile("[0-9a-f]{32}")
HARMLESS = 1e15  # the product of two such numbers, over any width, is a float32


def sources(sequence: Sequence, manifest: Manifest, *, reads_text: bool, reads_memory_text: bool) -> None:
    """Check which fields of a sequence are given.

    Args:
        sequence: the sequence.
        manifest: of the model.
        reads_text: whether the model has a text front.
        reads_memory_text: whether the model has a front for memory texts.

    Raises:
        InvalidRequest: a field is missing, is not for this model, or contradicts another.
    """
    path = sequence.path
    for name, source in (("text", sequence.text), ("token_ids", sequence.token_ids)):
        if source is not None and not reads_text:
            raise InvalidRequest("this model reads no text; send vectors as query", field=join_path(path, name))
    given = [sequence.query is None, sequence.text is None, sequence.token_ids is None].count(False)
    if given > 1 or (not given and not has_source(manifest)):
        expected = "exactly one of query, text and token_ids" if reads_text else "a query"
        raise InvalidRequest(f"give {expected}", field=join_path(path, "query"))
    if sequence.text_pair is not None and (sequence.text is None or not manifest.text.takes_pairs):
        reason = "goes with text" if manifest.text.takes_pairs else "this model takes no pairs of texts"
        raise InvalidRequest(reason, field=join_path(path, "text_pair"))
    if sequence.truncate != "none" and sequence.text is None and sequence.memory_text is None:
        raise InvalidRequest("goes with text or memory_text", field=join_path(path, "truncate"))
    for name, source in (("memory_text", sequence.memory_text), ("memory_token_ids", sequence.memory_token_ids)):
        if source is not None and not (reads_memory_text or attends_to_itself(manifest)):
            raise InvalidRequest("this model reads no memory text", field=join_path(path, name))
    _memory_sources(sequence, manifest, reads_memory_text=reads_memory_text)
    if sequence.extend:
        _check_extend(sequence, manifest)


def _check_extend(sequence: Sequence, manifest: Manifest) -> None:
    """Check that a sequence can be kept behind its memory."""
    field = join_path(sequence.path, "extend")
    if manifest.block != TRANSFORMER:
        raise InvalidRequest("this model keeps no sequence behind a memory; create another memory", field=field)
    if has_source(manifest) and not sequence.memory:
        raise InvalidRequest("goes with memory, a kept source, in an encoder-decoder", field=field)
    keeps_prefixes(manifest, field)


def _memory_sources(sequence: Sequence, manifest: Manifest, *, reads_memory_text: bool) -> None:
    path = sequence.path
    given = []
    if sequence.key is not None:
        given.append("key")
    if sequence.memory_text is not None:
        given.append("memory_text")
    if sequence.memory_token_ids is not None:
        given.append("memory_token_ids")
    if sequence.memory:
        given.append("memory")
    # Where nothing is projected, the keys of a memory may come before those of the sequence.
    given = ["key"] if given == ["key", "memory"] and manifest.block == DOT_PRODUCT else given
    if len(given) > 1:
        raise InvalidRequest(f"give only one of {' and '.join(given)}", field=join_path(path, given[1]))
    if sequence.value is not None and given not in ([], ["key"]):
        raise InvalidRequest(f"goes with key, not with {given[0]}", field=join_path(path, "value"))
    if has_source(manifest):
        _check_source(sequence, given)
        return
    if manifest.block == CROSS_ATTENTION and not given:
        wanted = "key, memory_text, memory_token_ids or memory" if reads_memory_text else "key or memory"
        raise InvalidRequest(
            f"a cross-attention model needs what it attends to: give {wanted}", field=join_path(path, "key")
        )
    if attends_to_itself(manifest):
        _check_prefix(sequence, manifest, given)


def _check_prefix(sequence: Sequence, manifest: Manifest, given: list[str]) -> None:
    """Check that a model that attends to its own sequence is given no keys but those of a kept prefix."""
    path = sequence.path
    if given == ["memory"]:
        keeps_prefixes(manifest, join_path(path, "memory"))
    elif given or sequence.value is not None:
        raise InvalidRequest(
            "a transformer attends to its own sequence; leave it out, or keep what goes before it as a memory",
            field=join_path(path, given[0] if given else "value"),
        )


def _check_source(sequence: Sequence, given: list[str]) -> None:
    """Check that an encoder-decoder is given one source, in a form that it reads."""
    path = sequence.path
    if sequence.key is not None or sequence.value is not None:
        field = "key" if sequence.key is not None else "value"
        raise InvalidRequest(
            f"an encoder-decoder makes keys and values of its source itself; {SOURCES}", field=join_path(path, field)
        )
    if not given:
        raise InvalidRequest(f"an encoder-decoder needs its source; {SOURCES}", field=join_path(path, "memory_text"))


def attends_to_itself(manifest: Manifest) -> bool:
    """Return whether a model takes no key, value or memory: its keys are of its own sequence, at each layer."""
    return manifest.block == TRANSFORMER and not has_source(manifest)


def keeps_prefixes(manifest: Manifest, field: str) -> None:
    """Check that a model can go on behind a prefix that is kept: no row of it depends on later rows.

    Raises:
        InvalidRequest: it cannot.
    """
    chain = target_chain(manifest)
    own = [layer for layer in chain.layers if layer.side != Side.SIDE_CROSS]
    if not chain.front:
        reason = "this model reads no text"
    elif not all(layer.causal for layer in own):
        reason = "this transformer attends to its whole sequence, so that its rows see what follows"
    elif manifest.front_rows_dependent or any(segment.rows_dependent for segment in chain.segments):
        reason = "rows of this transformer depend on further rows of one pass"
    else:
        return
    raise InvalidRequest(f"{reason}: it keeps no prefix; send the whole text at once", field=field)


def memory_sources(request: MemoryRequest, manifest: Manifest, *, reads_memory_text: bool) -> None:
    """Check which fields of a request for a memory are given.

    Raises:
        InvalidRequest: a field is missing, is not for this model, or contradicts another.
    """
    if is_prefix := attends_to_itself(manifest):
        keeps_prefixes(manifest, "model")
    sources = {"memory_text": request.memory_text, "memory_token_ids": request.memory_token_ids}
    texts = [name for name, source in sources.items() if source is not None]
    if texts and not reads_memory_text:
        raise InvalidRequest("this model reads no memory text", field=texts[0])
    if (request.key is not None) + len(texts) != 1:
        expected = "exactly one of key, memory_text and memory_token_ids" if reads_memory_text else "a key"
        expected = expected.replace("key, ", "") if is_prefix or has_source(manifest) else expected
        raise InvalidRequest(f"give {expected}", field="key")
    if (is_prefix or has_source(manifest)) and request.key is not None:
        kind = "a decoder keeps a prefix" if is_prefix else "an encoder-decoder keeps a source"
        raise InvalidRequest(f"{kind} of text; give memory_text", field="key")
    if request.value is not None and request.key is None:
        raise InvalidRequest(f"goes with key, not with {texts[0]}", field="value")
    if request.truncate != "none" and request.memory_text is None:
        raise InvalidRequest("goes with memory_text", field="truncate")
    if request.data_type not in DATA_TYPES:
        raise InvalidRequest(f"a memory is kept as FP32 or FP16, not as {request.data_type}", field="data_type")
    if request.id and not MEMORY_ID.fullmatch(request.id):
        raise InvalidRequest("must be 32 hexadecimal digits in lower case, or empty", field="id")
    if request.ttl is not None and not 0 < request.ttl <= MAX_SECONDS:
        raise InvalidRequest(f"must be above 0 and at most {MAX_SECONDS:.0f} seconds, not {request.ttl}", field="ttl")


def vectors(array: Array, width: int, field: str) -> NDArray[np.float32]:
    """Return a sequence of vectors as float32 [length, width].

    Raises:
        InvalidRequest: it is of another rank, type or width, or empty.
    """
    if array.dtype not in (np.float32, np.float16):
        raise InvalidRequest(f"must be FP32 or FP16, not {array.dtype}", field=field)
    if array.ndim != 2:
        raise InvalidRequest(f"must have shape [length, width], not {list(array.shape)}", field=field)
    if not array.size:
        raise InvalidRequest(f"must not be empty, but has shape {list(array.shape)}", field=field)
    if width and array.shape[1] != width:
        raise InvalidRequest(f"must be {width} wide, but has shape {list(array.shape)}", field=field)
    return np.ascontiguousarray(array, np.float32)


def stands_in(array: Array, width: int, what: str, field: str) -> None:
    """Check that an array can stand in for one that was not sent.

    Raises:
        InvalidRequest: the widths differ, so the missing array has to be sent.
    """
    if width and array.shape[1] != width:
        raise InvalidRequest(
            f"must be sent, {width} wide: {what}, {array.shape[1]} wide, cannot stand in for it", field=field
        )


def mask(mask: Mask, layer: Layer, queries: int, keys: int, field: str) -> None:
    """Check that a mask fits.

    Raises:
        InvalidRequest: a window is negative, or a tensor is of another type, does not broadcast, or is not finite.
    """
    if min(mask.window) < UNBOUNDED:
        raise InvalidRequest(
            f"must be at least 0, or -1 for unbounded, not {list(mask.window)}", field=join_path(field, "window")
        )
    if mask.allowed is not None:
        if mask.allowed.dtype != np.bool_:
            raise InvalidRequest(f"must be BOOL, not {mask.allowed.dtype}", field=join_path(field, "allowed"))
        _broadcasts(mask.allowed, layer, queries, keys, join_path(field, "allowed"))
    if mask.bias is not None:
        if mask.bias.dtype not in (np.float32, np.float16):
            raise InvalidRequest(f"must be FP32 or FP16, not {mask.bias.dtype}", field=join_path(field, "bias"))
        _broadcasts(mask.bias, layer, queries, keys, join_path(field, "bias"))
        wrong = np.isnan(mask.bias) | (mask.bias == np.inf)
        if wrong.any():
            raise InvalidRequest(
                f"must be finite or -inf, but is {mask.bias[wrong][0]} at {_first(wrong)}",
                field=join_path(field, "bias"),
            )


def mask_layers(mask: Mask, manifest: Manifest, field: str) -> frozenset[str] | None:
    """Return the names of the sites that a mask is for; None for all that a request can mask.

    Raises:
        InvalidRequest: there is no such layer, or its queries and keys are not those of the request.
    """
    if not mask.layers:
        return None
    path = join_path(field, "layers")
    try:
        chosen = [manifest.layers[i] for i in chosen_layers(STAGES["weights"], mask.layers, manifest)]
    except NotOfferedError as error:
        raise InvalidRequest(str(error), field=path) from error
    for layer in chosen:
        if site_axes(layer, manifest) != CROSS:
            raise InvalidRequest(f"a mask of an encoder-decoder is for cross sites, not for {layer.name}", field=path)
    return frozenset(layer.name for layer in chosen)


def source_mask(mask: Mask, field: str) -> None:
    """Check that a mask can be one of the sites in which a target attends to its source.

    Raises:
        InvalidRequest: it is causal or has a window, which have no meaning between two sequences.
    """
    for name, is_given in (("causal", mask.causal != "none"), ("window", mask.window != (UNBOUNDED, UNBOUNDED))):
        if is_given:
            raise InvalidRequest(
                "a mask of an encoder-decoder is for its cross sites, whose queries and keys are of two sequences; "
                "give allowed or bias",
                field=join_path(field, name),
            )


def _broadcasts(array: Array, layer: Layer, queries: int, keys: int, field: str) -> None:
    target = (layer.heads, queries, keys)
    shape = (1,) * (3 - array.ndim) + array.shape
    if len(shape) != 3 or any(size not in (1, wanted) for size, wanted in zip(shape, target, strict=True)):
        raise InvalidRequest(
            f"must be broadcastable to [heads, queries, keys] = {list(target)}, but has shape {list(array.shape)}",
            field=field,
        )


def finite(array: NDArray[np.float32], matters: NDArray[np.bool_] | None, path: str, name: str) -> NDArray[np.float32]:
    """Reject NaN and infinity at unmasked positions; return the array with such numbers zeroed at masked positions.

    A weight of 0 does not hide a NaN in a masked key, nor a product that overflows: 0 * NaN is NaN.

    Args:
        array: [length, width]; of any shape where `matters` is None.
        matters: whether a position is unmasked, [length]; None where all are.
        path: of the sequence, for the error.
        name: the name of the field.

    Raises:
        InvalidRequest: a number at an unmasked position is NaN or infinite.
    """
    if matters is not None:
        poison = ~(np.abs(array) <= HARMLESS) & ~matters[:, None]  # `not <=`, for NaN is not <= anything
        array = np.where(poison, np.float32(0), array) if poison.any() else array
    if _is_finite(array):
        return array
    where = _first(~np.isfinite(array))
    raise InvalidRequest(
        f"must be finite, but is {array[tuple(where)]} at {where}; mask the position, or send a number",
        field=join_path(path, name),
    )


def no_overflow(output: NDArray[np.float32], field: str) -> None:
    """Check that a computation stayed within float32.

    Raises:
        InvalidRequest: it did not.
    """
    if not _is_finite(output):
        raise InvalidRequest(
            "the numbers are so large that the computation overflows float32; scale them down", field=field
        )


def _is_finite(array: NDArray[np.float32]) -> bool:
    """Return whether all numbers are."""
    # A finite sum of squares tells it in half the time. It may overflow for finite numbers, and it would copy an array
    # that is not contiguous.
    if array.flags.c_contiguous and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def _first(wrong: NDArray[np.bool_]) -> list[int]:
    """Return the position of the first true element."""
    return [int(index) for index in np.unravel_index(int(wrong.argmax()), wrong.shape)]
