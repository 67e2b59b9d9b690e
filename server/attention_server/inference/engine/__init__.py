"""Engines: the protocol, and its implementation by onnxruntime."""
