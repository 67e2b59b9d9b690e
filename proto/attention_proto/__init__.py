"""The contract of Attention Service: generated messages, and the codec between NumPy and the wire."""
