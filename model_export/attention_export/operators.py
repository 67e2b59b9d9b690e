"""The exporter's operators: each source is parsed once for a process, and programs are traced once."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript._internal import values
from torch import Tensor
from torch._ops import HigherOrderOperator, OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

Table = Mapping[OperatorBase, Callable[..., Any]]
"""Decompositions by operator, of those without a translation to ONNX."""

aten = torch.ops.aten
CONVERSIONS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout)


@functools.cache
def keep_signatures() -> None:
    """Have onnxscript keep the signature of each operator that it parses.

    torch.onnx asks for the signatures of all operators for each graph. onnxscript answers from an operator's source,
    which it parses anew each time: half of the time that the export of a small graph takes.
    """
    parse = vars(values.TracedOnnxFunction)["function_ir"].fget  # a property of the function alone
    values.TracedOnnxFunction.function_ir = property(functools.cache(parse))  # type: ignore[assignment]


def skip_decompositions(program: ExportedProgram) -> ExportedProgram:
    """Have torch.onnx translate a program as it was traced, where each of its operators has a translation.

    torch.onnx traces a program a second time to decompose operators, which takes longer than the first tracing, even
    where there are none to decompose. A program with others, or which writes into tensors, is decomposed as ever.

    Args:
        program: in evaluation mode; nodes that change nothing are removed.

    Returns:
        The program.
    """
    decompose: Callable[[Table], ExportedProgram] = program.run_decompositions

    def run(table: Table) -> ExportedProgram:
        graph = program.graph_module.graph
        for node in list(graph.nodes):
            if node.op == "call_function":
                _simplify(node)
        if all(_is_translated(node, table) for node in graph.nodes):
            graph.eliminate_dead_code()
            return program
        return decompose({**table, **OF_SIZES})

    program.run_decompositions = run
    return program


def _flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
    first, last = start % x.dim(), end % x.dim()
    return x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


def _repeat(x: Tensor, repeats: int, dim: int | None = None, **_: Any) -> Tensor:
    """Repeat each element along a dimension, all of the flat tensor without one."""
    if dim is None:
        x, dim = x.reshape(-1), 0
    before, size, behind = x.shape[: dim % x.dim()], x.shape[dim], x.shape[dim % x.dim() + 1 :]
    repeated = x.unsqueeze(len(before) + 1).expand(*before, size, repeats, *behind)
    return repeated.reshape(*before, size * repeats, *behind)


# Their translations compute with sizes at run time, and leave out shapes by which the rows of a sequence are followed.
OF_SIZES: dict[OperatorBase, Callable[..., Any]] = {
    aten.flatten.using_ints: _flatten,
    aten.repeat_interleave.self_int: _repeat,
}


def _simplify(node: Node) -> None:
    """Write conversions of a type as `_to_copy`, and skip those to the type that is there, and dropout."""
    if node.target in CONVERSIONS:
        given, dtype = node.args[0], node.meta["val"].dtype
        assert isinstance(given, Node)
        if given.meta["val"].dtype == dtype:
            _skip(node)
        else:
            node.target, node.args, node.kwargs = aten._to_copy.default, (given,), {"dtype": dtype}  # noqa: SLF001
    elif node.target is aten.dropout.default and not node.args[2]:
        _skip(node)


def _skip(node: Node) -> None:
    """Let users of a result read its first argument; a result of the program keeps its name."""
    given = node.args[0]
    assert isinstance(given, Node)
    node.replace_all_uses_with(given, lambda user: user.op != "output")
    node.target, node.args, node.kwargs = aten.alias.default, (given,), {}


def _is_translated(node: Node, table: Table) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if isinstance(node.target, OpOverload):
        is_known = node.target not in table and node.target not in OF_SIZES
        return is_known and not node.target._schema.is_mutable  # noqa: SLF001
    return not isinstance(node.target, HigherOrderOperator)
