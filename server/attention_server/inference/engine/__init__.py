"""Engines: a protocol of what computes graphs, and its implementation by onnxruntime."""
