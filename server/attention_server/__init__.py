"""The service: attention, its weights and every stage between, over gRPC and REST. No torch."""

import os

# onnxruntime reports to its maker by default, from the moment it is imported. A service says nothing of its users.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# NumPy starts a thread for each core of the machine when it is imported, whatever the slots and the container's share.
if "OPENBLAS_NUM_THREADS" not in os.environ:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy  # noqa: F401, ICN001

    del os.environ["OPENBLAS_NUM_THREADS"]  # it is not for what this process starts
