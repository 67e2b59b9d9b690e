"""Content types: how MLServer's clients say in `parameters.content_type` what a tensor was made from.

A tensor is read the same way for every content type but `base64`, of which the elements are decoded.
"""

import base64
import binascii

import numpy as np

from attention_server.codecs.document import typed
from attention_server.codecs.oip.messages import Parameters
from attention_server.domain.messages import Array
from attention_server.errors import InvalidRequest

CONTENT_TYPE = "content_type"
OF_BYTES = ("str", "base64")
OF_INPUTS = (*OF_BYTES, "np", "pd")
OF_REQUESTS = ("str", "np", "pd")  # and of outputs
# Parameters of Triton's and MLServer's clients that change nothing with these values.
NEUTRAL: Parameters = {"priority": 0, "sequence_id": 0, "sequence_start": False, "sequence_end": False}


def check_content_type(parameters: Parameters, path: str, known: tuple[str, ...] = OF_REQUESTS) -> str:
    """Return the parameter `content_type` of a request or tensor; empty without one.

    Args:
        parameters: of the request or tensor.
        path: of the parameters, for the error.
        known: the content types that may be sent here.

    Raises:
        InvalidRequest: the content type is no string, or not a known one.
    """
    name: str = typed(parameters, CONTENT_TYPE, str, "", path)
    if name and name not in known:
        raise InvalidRequest(f"must be one of {', '.join(known)}, not {name[:64]!r}", field=f"{path}.{CONTENT_TYPE}")
    return name


def read_content(array: Array, parameters: Parameters, path: str) -> Array:
    """Return an input's array as its content type says.

    Args:
        array: the input; BYTES are `str` objects.
        parameters: of the input.
        path: of the parameters, for errors.

    Raises:
        InvalidRequest: the content type is unknown or of another data type, or an element is no base64 of UTF-8.
    """
    name = check_content_type(parameters, path, OF_INPUTS)
    if name in OF_BYTES and array.dtype != object:
        raise InvalidRequest(f"{name} is of BYTES, and this input holds numbers", field=f"{path}.{CONTENT_TYPE}")
    if name != "base64" or array.dtype != object:
        return array
    try:
        decoded = [base64.b64decode(each, validate=True).decode() for each in array.ravel().tolist()]
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"says base64 of UTF-8: {error}", field=f"{path}.{CONTENT_TYPE}") from error
    return np.array(decoded, dtype=object).reshape(array.shape)


def is_neutral(name: str, value: object) -> bool:
    """Return whether a parameter of a request has the value that changes nothing."""
    return name in NEUTRAL and type(value) in (bool, int) and value == NEUTRAL[name]
