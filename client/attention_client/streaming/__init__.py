"""Streams of batches: `batcher`, `window` and `state` have the rules, `blocking` and `aio` do the waiting."""
