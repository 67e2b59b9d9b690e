"""The exporter's operators: each source is parsed once for a process, and programs are traced once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript._internal import values
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
        return decompose(table)

    program.run_decompositions = run
    return program


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
        return node.target not in table and not node.target._schema.is_mutable  # noqa: SLF001
    return not isinstance(node.target, HigherOrderOperator)
