"""Versions of models on disk and in memory."""
