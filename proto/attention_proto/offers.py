"""The stages that a model offers: which layers give a stage, with which lengths, and the choice of layers and pairs.

The planner, the Open Inference Protocol's metadata and the columns of scored files read it.
"""

from collections.abc import Iterable, Mapping, Sequence

from attention_proto.attention.v1.attention_pb2 import Layer, Manifest, Side
from attention_proto.chains import crosses, site_axes
from attention_proto.stages import STAGES, Axis, Fold, Stage

EVERY_LAYER = "*"


class NotOfferedError(ValueError):
    """A model does not offer a stage, layer or pair.

    Attributes:
        option: the field of an output that names it.
    """

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


def offers(stage: Stage, layer: Layer, manifest: Manifest) -> bool:
    """Return whether a layer gives a stage; of a stage of the model, whether the model gives it."""
    if stage.is_of_head:
        return manifest.logits_dim > 0
    if stage.level == "model":
        return manifest.text.HasField("front") and layer.side != Side.SIDE_SOURCE
    if stage.is_links:
        return crosses(layer, manifest)
    return not stage.is_listed or stage.name in layer.stages


def lengths(stage: Stage, layer: Layer, manifest: Manifest) -> Mapping[Axis, int]:
    """Return the length of each axis of a stage at a layer; 0 where it depends on the sequence."""
    if stage.level == "site":
        width = layer.output_dim or layer.heads * layer.value_head_dim
    elif stage.level == "layer":
        width = manifest.hidden_dim
    else:
        width = next(each.query_dim for each in manifest.layers if each.side != Side.SIDE_SOURCE)
    every: Mapping[Axis, int] = {
        "H": layer.heads,
        "Hkv": layer.key_value_heads,
        "Dh": layer.head_dim,
        "Dv": layer.value_head_dim,
        "D": width,
        "V": manifest.logits_dim,
        "C": len(stage.columns),
    }
    return {axis: every.get(axis, 0) for axis in stage.axes}


def chosen_layers(stage: Stage, names: Sequence[str], manifest: Manifest) -> list[int]:
    """Return the positions of the layers that an output reads.

    A stage of the model reads the first layer's input, a stage of the head the last layer.

    Args:
        stage: the output's stage.
        names: of layers; `*` for all that offer the stage, `decoder.*` for those of one part, none for the last layer.
        manifest: of the model.

    Raises:
        NotOfferedError: there is no such layer, one is named twice, or it does not give the stage.
    """
    layers = manifest.layers
    having = [i for i, layer in enumerate(layers) if offers(stage, layer, manifest)]
    if not having:
        raise NotOfferedError(f"this model gives no {stage.name}", "name")
    if stage.level == "model":
        return having[-1:] if stage.is_of_head else having[:1]
    _check_distinct(names)
    named = [i for name in names if name != EVERY_LAYER for i in _positions(name, having, manifest, "layers")]
    if EVERY_LAYER in names:
        return having
    chosen = list(dict.fromkeys(named)) or [_last(stage, manifest)]
    for i in chosen:
        if i not in having:
            raise _lacks(stage, i, manifest, "layers" if names else "name")
    return chosen


def chosen_pairs(stage: Stage, pairs: Iterable[str], manifest: Manifest) -> list[tuple[int, int]]:
    """Return the position of the layer and the head of each pair LAYER.HEAD.

    Raises:
        NotOfferedError: a pair is malformed or named twice, there is no such layer or head, a layer does not give the
            stage, or the stage has another shape in two of the layers.
    """
    having = [i for i, layer in enumerate(manifest.layers) if offers(stage, layer, manifest)]
    chosen: dict[tuple[int, int], str] = {}
    for pair in pairs:
        name, dot, number = pair.rpartition(".")
        if not dot or not number.isascii() or not number.isdigit():
            raise NotOfferedError(f"{pair[:64]!r} is no pair LAYER.HEAD, such as {_example(manifest)!r}", "pairs")
        for layer in _positions(name, having, manifest, "pairs", pair):
            if layer not in having:
                raise _lacks(stage, layer, manifest, "pairs")
            place = layer, _head(stage, layer, number, manifest, pair)
            if place in chosen:
                raise NotOfferedError(f"names {pair[:64]!r} twice", "pairs")
            chosen[place] = pair
    _check_alike(stage, [(layer, pair) for (layer, _), pair in chosen.items()], manifest, "pairs")
    return list(chosen)


def folded_layers(stage: Stage, fold: Fold, names: Sequence[str], manifest: Manifest) -> list[int]:
    """Return the positions of the layers that a fold makes one, in the order of computation.

    Args:
        stage: the output's stage.
        fold: a rollout is of sites over their own sequence.
        names: as of `chosen_layers`; empty for all with the rows and keys of the last that the fold takes.
        manifest: of the model.

    Raises:
        NotOfferedError: as of `chosen_layers`, or the fold does not take a layer, or the rows or keys of two differ.
    """
    layers = manifest.layers
    if names:
        chosen = sorted(chosen_layers(stage, names, manifest))
        crossing = [layers[i].name for i in chosen if fold == "rollout" and crosses(layers[i], manifest)]
        if crossing:
            raise NotOfferedError(f"rollout is of self-attention; layer {crossing[0]} reads another sequence", "fold")
    else:
        chosen = [i for i, layer in enumerate(layers) if not (fold == "rollout" and crosses(layer, manifest))]
        if not chosen:
            raise NotOfferedError("rollout is of self-attention, which no layer of this model is", "fold")
        chosen = [i for i in chosen if site_axes(layers[i], manifest) == site_axes(layers[chosen[-1]], manifest)]
    _check_alike(stage, [(i, layers[i].name) for i in chosen], manifest, "layers")
    return chosen


def _check_distinct(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise NotOfferedError(f"names {name[:64]!r} twice", "layers")
        seen.add(name)


def _lacks(stage: Stage, index: int, manifest: Manifest, option: str) -> NotOfferedError:
    """Return the error of a layer that lacks a stage, with the layers that give it."""
    having = [layer.name for layer in manifest.layers if offers(stage, layer, manifest)]
    there = f"there is that of {', '.join(having)}" if having else "no layer does"
    return NotOfferedError(f"layer {manifest.layers[index].name} gives no {stage.name}; {there}", option)


def _check_alike(stage: Stage, chosen: Iterable[tuple[int, str]], manifest: Manifest, option: str) -> None:
    """Check that heads of layers can stand in one array: rows and columns are of the same length.

    Args:
        stage: the output's stage.
        chosen: the position of each layer, and its name, or that of its pair.
        manifest: of the model.
        option: the field that has these names: `pairs` or `layers`.
    """
    first: tuple[list[str], str] | None = None
    for layer, name in chosen:
        shape = _shape_of_head(stage, manifest.layers[layer], manifest)
        if first is None:
            first = (shape, name)
        elif shape != first[0]:
            noun = "the pair" if option == "pairs" else "layer"
            words = f"is [{', '.join(first[0])}] for {noun} {first[1]!r} and [{', '.join(shape)}] for {name!r}"
            raise NotOfferedError(f"{stage.name} {words}: ask for them apart", option)


def _shape_of_head(stage: Stage, layer: Layer, manifest: Manifest) -> list[str]:
    """Return the lengths of a stage's rows and columns; those of the request's sequences by their names, T and S."""
    known = lengths(stage, layer, manifest)
    named: dict[Axis, Axis] = dict(zip(("T", "S"), site_axes(layer, manifest), strict=True))
    axes = STAGES[stage.computed].axes[1:]  # sums are made of rows, which are stacked first
    return [str(known.get(axis) or named.get(axis, axis)) for axis in axes]


def _head(stage: Stage, layer: int, number: str, manifest: Manifest, pair: str) -> int:
    """Return the head of a pair's layer that a number names."""
    about = manifest.layers[layer]
    heads = about.key_value_heads if stage.head_axis == "Hkv" else about.heads
    digits = number.lstrip("0") or "0"  # Python reads no number of thousands of digits
    if len(digits) > len(str(heads)) or int(digits) >= heads:
        words = f"there is no head {number[:16]} for the pair {pair[:64]!r}; layer {about.name} has {heads}, from 0"
        raise NotOfferedError(words, "pairs")
    return int(digits)


def _last(stage: Stage, manifest: Manifest) -> int:
    """Return the position of the last layer, or of the last site: a cross site ends no layer."""
    last = len(manifest.layers) - 1
    return last - 1 if stage.level == "layer" and manifest.layers[last].side == Side.SIDE_CROSS else last


def _positions(name: str, having: Sequence[int], manifest: Manifest, option: str, pair: str = "") -> list[int]:
    """Return the position of the layer of a name, or of all of a pattern that offer the stage.

    In a pattern, `*` stands for one part of a name: `decoder.*` for `decoder.0`, not for `decoder.0.cross`.
    """
    if EVERY_LAYER not in name or name == EVERY_LAYER:
        return [_position(name, manifest, option, pair)]
    parts = name.split(".")
    found = [i for i, layer in enumerate(manifest.layers) if _matches(parts, layer.name.split("."))]
    chosen = [i for i in found if i in having]
    return chosen or found[:1] or [_position(name, manifest, option, pair)]


def _matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    if len(pattern) != len(name):
        return False
    return all(part in (EVERY_LAYER, own) for part, own in zip(pattern, name, strict=True))


def _position(name: str, manifest: Manifest, option: str, pair: str = "") -> int:
    names = [layer.name for layer in manifest.layers]
    if name not in names:
        of = f" for the pair {pair[:64]!r}" if pair else ""
        raise NotOfferedError(f"there is no layer {name[:64]!r}{of}; there is {', '.join(names)}", option)
    return names.index(name)


def _example(manifest: Manifest) -> str:
    return f"{manifest.layers[-1].name}.0"
