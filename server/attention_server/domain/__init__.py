"""Requests, responses, limits and the context of a call, independent of protocol and engine."""
