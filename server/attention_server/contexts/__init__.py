"""Memories: kept keys and values with their owners, and the budget of their bytes."""
