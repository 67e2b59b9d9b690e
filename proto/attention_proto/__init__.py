"""The contract of Attention Service: generated messages, the table of stages, and the codec of NumPy arrays."""
