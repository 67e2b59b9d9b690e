"""The documented name of `attention_client.display.viewer`: attention weights as an HTML page."""

from attention_client.display.viewer import frame, page

__all__ = ["frame", "page"]
