"""Attention blocks in PyTorch: defined, trained, exported to ONNX and verified. The only user of torch."""
