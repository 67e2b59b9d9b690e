"""Verification of exports that a test makes for another reason than their numbers."""

import pytest
from attention_export import verify


@pytest.fixture
def few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an export verified at two lengths, so that it takes a second in place of five."""
    monkeypatch.setattr(verify, "LENGTHS", ((2, 7), (7, 2)))
