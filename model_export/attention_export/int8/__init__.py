"""int8 versions for CPUs: written only if the measured error is within bounds and the version is faster."""

from attention_export.int8.examples import BadData
from attention_export.int8.rounding import to_int8
from attention_export.int8.version import BoundExceeded, Bounds, quantize

__all__ = ["BadData", "BoundExceeded", "Bounds", "quantize", "to_int8"]
