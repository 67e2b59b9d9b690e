"""The Open Inference Protocol: its wire formats, its rules, and its messages to and from the domain."""
