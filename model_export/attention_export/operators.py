"""The exporter's operators, whose sources are parsed once for a process."""

import functools

from onnxscript._internal import values


@functools.cache
def keep_signatures() -> None:
    """Have onnxscript keep the signature of each operator that it parses.

    torch.onnx asks for the signatures of all operators for each graph. onnxscript answers from an operator's source,
    which it parses anew each time: half of the time that the export of a small graph takes.
    """
    parse = vars(values.TracedOnnxFunction)["function_ir"].fget  # a property of the function alone
    values.TracedOnnxFunction.function_ir = property(functools.cache(parse))  # type: ignore[assignment]
