"""The service: attention, its weights and every stage between, over gRPC and REST. No torch."""

import os

# onnxruntime reports to its maker by default, from the moment it is imported. A service says nothing of its users.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# NumPy starts a thread for each core of the machine when it is imported, whatever the slots and the container's share.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
