"""Attention weights as a page of its own; `attention_client.display.viewer` under the name that the documents use."""

from attention_client.display.viewer import frame, page

__all__ = ["frame", "page"]
