"""The common part of Triton's four clients: requests in their classes, and reports of answers."""

from typing import Any

import numpy as np
from scenario import Case, data_type, plain


def request(module: Any, case: Case, **options: Any) -> dict[str, Any]:
    """Return the arguments of `infer`; `binary` is the HTTP clients' choice of form."""
    binary = options.pop("binary", None)
    form = {} if binary is None else {"binary_data": binary}
    inputs = []
    for name, array in case.inputs.items():
        tensor = module.InferInput(name, array.shape, data_type(array))
        # The client has no JSON form for FP16.
        tensor.set_data_from_numpy(array, **(form if array.dtype != np.float16 else {}))
        inputs.append(tensor)
    outputs = [module.InferRequestedOutput(name, **form) for name in case.outputs] or None
    return {
        "model_name": case.model,
        "inputs": inputs,
        "outputs": outputs,
        "parameters": dict(case.parameters),
        **options,
    }


def outputs(result: Any) -> dict[str, np.ndarray]:
    """Return every output of a result, whichever form it came in."""
    response = result.get_response()
    names = [each["name"] for each in response["outputs"]] if isinstance(response, dict) else None
    names = names or [each.name for each in response.outputs]
    return {name: result.as_numpy(name) for name in names}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(plain(one[name]), plain(other[name])) for name in one)


def names(metadata: Any) -> dict[str, list[str]]:
    return {kind: [each["name"] for each in metadata[kind]] for kind in ("inputs", "outputs")}
