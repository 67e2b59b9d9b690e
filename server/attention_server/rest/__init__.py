"""The HTTP port: REST for attention.v1, the Open Inference Protocol, health, metrics, documentation and the page."""
