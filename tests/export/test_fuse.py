"""Operators that a traced graph writes out are fused where they are these operators, and nowhere else."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from attention_export.importing.transformer.fuse import fuse
from export.segment_runner import session

NORM = """<ir_version: 10, opset_import: ["" : 23]>
norm (float[B, T, 8] x, float[B, T, 8] other) => (float[B, T, 8] y)
<float two = {2.0}, int64[1] last = {-1}, float epsilon = {1e-05},
 float[8] scale = {1.5, -0.5, 2.0, 0.25, 1.0, 0.75, -2.0, 3.0}>
{
    square = Pow(x, two)
    mean = ReduceMean<keepdims = 1>(square, last)
    sum = Add(mean, epsilon)
    root = Sqrt(sum)
    inverse = Reciprocal(root)
    normal = Mul(x, inverse)
    y = Mul(scale, normal)
}"""
ROTARY = """<ir_version: 10, opset_import: ["" : 23]>
rotary (float[B, T, 32] x, float[B, T, 4] f, float[B, T, 4] g) => (float[B, T, 32] y)
<int64[4] split = {0, 0, 4, 8}, int64[3] packed = {0, 0, 32}, int64[1] one = {1}, int64[1] last = {3},
 int64[1] zero = {0}, int64[1] half = {4}, int64[1] end = {9223372036854775807}, float scale = {1.25}>
{
    by_row = Reshape(x, split)
    heads = Transpose<perm = [0, 2, 1, 3]>(by_row)
    angles = Concat<axis = -1>(f, f)
    cos = Cos(angles)
    cos_scaled = Mul(cos, scale)
    c = Unsqueeze(cos_scaled, one)
    sin = Sin(angles)
    sin_scaled = Mul(sin, scale)
    s = Unsqueeze(sin_scaled, one)
    second = Slice(heads, half, end, last, one)
    negative = Neg(second)
    first = Slice(heads, zero, half, last, one)
    turned = Concat<axis = -1>(negative, first)
    straight = Mul(heads, c)
    across = Mul(turned, s)
    all = Add(straight, across)
    back = Transpose<perm = [0, 2, 1, 3]>(all)
    y = Reshape(back, packed)
}"""
PARTIAL = """
    part = Slice(heads, zero, eight, last, one)
    rest = Slice(heads, eight, end, last, one)"""

NORMALISED = ROTARY.replace(
    "heads = Transpose<perm = [0, 2, 1, 3]>(by_row)",
    "turned_heads = Transpose<perm = [0, 2, 1, 3]>(by_row)\n"
    "    heads = RMSNormalization<axis = -1>(turned_heads, gains)",
).replace("float scale =", "float[8] gains = {1.5, -0.5, 2.0, 0.25, 1.0, 0.75, -2.0, 3.0}, float scale =")

REWRITTEN = {
    "a norm": (NORM, {"RMSNormalization": 1}),
    "a norm that is squared by itself": (NORM.replace("Pow(x, two)", "Mul(x, x)"), {"RMSNormalization": 1}),
    "a norm without a scale": (NORM.replace("Mul(scale, normal)", "Neg(normal)"), {"RMSNormalization": 1, "Neg": 1}),
    "positions": (ROTARY, {"Cos": 1, "Sin": 1, "Mul": 2, "RotaryEmbedding": 1}),
    "positions that are not scaled": (
        ROTARY.replace("scale = {1.25}", "scale = {1.0}"),
        {"Cos": 1, "Sin": 1, "RotaryEmbedding": 1},
    ),
    "positions of a part of each head": (
        ROTARY.replace("split = {0, 0, 4, 8}", "split = {0, 0, 2, 16}, int64[1] eight = {8}")
        .replace("(by_row)", "(by_row)" + PARTIAL)
        .replace("Slice(heads, half", "Slice(part, half")
        .replace("Slice(heads, zero, half", "Slice(part, zero, half")
        .replace("Mul(heads, c)", "Mul(part, c)")
        .replace("(straight, across)", "(straight, across)\n    joined = Concat<axis = 3>(all, rest)")
        .replace("(all)", "(joined)"),
        {"Cos": 1, "Sin": 1, "Mul": 2, "RotaryEmbedding": 1},
    ),
    "positions of normalised heads": (
        NORMALISED,
        {"Cos": 1, "Sin": 1, "Mul": 2, "RotaryEmbedding": 1, "Reshape": 2, "RMSNormalization": 1},
    ),
    "positions of heads that are read by another": (
        ROTARY.replace("Transpose<perm = [0, 2, 1, 3]>(all)", "Transpose<perm = [0, 2, 1, 3]>(more)").replace(
            "(straight, across)", "(straight, across)\n    more = Abs(all)"
        ),
        {"Cos": 1, "Sin": 1, "Mul": 2, "RotaryEmbedding": 1, "Reshape": 2, "Transpose": 2, "Abs": 1},
    ),
}
LEFT = {
    "a mean of another axis": NORM.replace("{-1}", "{1}"),
    "a mean of another tensor": NORM.replace("Pow(x, two)", "Pow(other, two)"),
    "a mean of cubes": NORM.replace("two = {2.0}", "two = {3.0}"),
    "another tensor that is normalised": NORM.replace("Mul(x, inverse)", "Mul(other, inverse)"),
    "positions turned back": ROTARY.replace("Neg(second)", "Neg(first)")
    .replace("(negative, first)", "(second, negative)")
    .replace("negative = Neg(first)\n    first = Slice(heads, zero, half, last, one)", "")
    .replace("second = ", "first = Slice(heads, zero, half, last, one)\n    negative = Neg(first)\n    second = "),
    "halves that are not swapped": ROTARY.replace("(negative, first)", "(first, negative)"),
    "parts of other sizes": ROTARY.replace("half = {4}", "half = {5}")
    .replace("zero, half", "zero, three")
    .replace("int64[1] half = {5}", "int64[1] half = {5}, int64[1] three = {5}"),
    "angles that differ between the halves": ROTARY.replace("(f, f)", "(f, g)"),
    "sines of other angles": ROTARY.replace("Sin(angles)", "Sin(others)").replace(
        "(f, f)", "(f, f)\n    others = Concat<axis = -1>(g, g)"
    ),
    "sines of another scale": ROTARY.replace("Mul(sin, scale)", "Mul(sin, wide)").replace(
        "float scale = {1.25}", "float scale = {1.25}, float wide = {2.0}"
    ),
}


def fused(text: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return a graph, and the same fused."""
    given = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), strict_mode=True)
    model = ir.from_proto(given)
    fuse(model.graph)
    return given, ir.to_proto(model)


def difference(given: onnx.ModelProto, result: onnx.ModelProto) -> float:
    """Return the largest difference between the results of two graphs."""
    draw = np.random.default_rng(0)
    feeds = {
        each.name: draw.standard_normal((2, 5, each.type.tensor_type.shape.dim[2].dim_value))
        for each in given.graph.input
    }
    runs = []
    for model in (given, result):
        opened = session(model.SerializeToString())
        runs.append(
            opened.run(None, {each.name: feeds[each.name].astype(np.float32) for each in opened.get_inputs()})[0]
        )
    return float(np.abs(runs[0] - runs[1]).max())


@pytest.mark.parametrize("case", REWRITTEN)
def test_operators_that_are_written_out_are_fused(case: str) -> None:
    """A norm and rotary positions become one operator each, of the same results."""
    text, operators = REWRITTEN[case]
    given, result = fused(text)
    assert Counter(node.op_type for node in result.graph.node) == operators
    assert difference(given, result) < 2e-6


@pytest.mark.parametrize("case", LEFT)
def test_what_only_resembles_an_operator_stays(case: str) -> None:
    """A graph that differs in one place is left as it was, node by node."""
    given, result = fused(LEFT[case])
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in given.graph.node]
