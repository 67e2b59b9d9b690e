"""Attention blocks in PyTorch: defined, trained, exported to ONNX and verified. The only user of torch."""

import os

# onnxruntime reports to its maker by default, from the moment it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
