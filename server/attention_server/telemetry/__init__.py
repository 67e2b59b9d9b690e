"""Metrics, traces and logs, made from the record of each request."""
