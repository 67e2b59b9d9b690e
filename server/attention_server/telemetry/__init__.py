"""Metrics, traces and logs, made of the record of each request."""
