"""Versions changed after export: spoiled, or with other weights."""

import hashlib
import json
import os

import onnx
from onnx import numpy_helper


def edit(folder, change=None):
    """Change a manifest, or none of it but its files' hashes, which come right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if change is not None:
        change(manifest)
    for file in files(manifest):
        if (folder / file["name"]).is_file():
            file["sha256"] = hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def files(part):
    """Yield the manifest's entries of files."""
    if isinstance(part, dict):
        if "sha256" in part:
            yield part
        else:
            for each in part.values():
                yield from files(each)
    elif isinstance(part, list):
        for each in part:
            yield from files(each)


def insert(path, tensor, *steps):
    """Put operations behind an input, or before an output, of a graph: each is (operator, further inputs, attributes).

    A further input is an array, "=" for the tensor as it was, or the name of one that an earlier step gave.
    """
    model = onnx.load(path)
    graph = model.graph
    is_input = any(each.name == tensor for each in graph.input)
    first, last = (tensor, f"{tensor}_new") if is_input else (f"{tensor}_old", tensor)
    for node in graph.node:
        node.input[:] = [last if name == tensor and is_input else name for name in node.input]
        node.output[:] = [first if name == tensor else name for name in node.output]
    nodes, current = [], first
    for number, (operator, others, attributes) in enumerate(steps):
        names = []
        for place, other in enumerate(others):
            if isinstance(other, str):
                names.append(first if other == "=" else other)
                continue
            names.append(f"{tensor}_constant_{number}_{place}")
            graph.initializer.append(numpy_helper.from_array(other, names[-1]))
        made = last if number == len(steps) - 1 else f"{tensor}_step_{number}"
        nodes.append(onnx.helper.make_node(operator, [current, *names], [made], **attributes))
        current = made
    before, after = (nodes, []) if is_input else ([], nodes)
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *kept, *after])
    onnx.save(model, path)


def change_weights(folder, factor):
    """Multiply every matrix and bias in a version's graphs: another model of the same form, verified as such."""
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        changed = 0
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if tensor.name.startswith("block."):
                tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
                changed += 1
        assert changed, path
        onnx.save(model, path)
    edit(folder)


def flip_a_byte(folder):
    content = bytearray((folder / "attend.onnx").read_bytes())
    content[-9] ^= 1
    (folder / "attend.onnx").write_bytes(content)


def cut(folder):
    os.truncate(folder / "explain.onnx", (folder / "explain.onnx").stat().st_size // 2)
