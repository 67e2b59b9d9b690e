"""Callers, their tokens and certificates, and the files they are read from."""
