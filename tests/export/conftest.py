"""Verification of exports that a test makes for another reason than their numbers."""

import pytest
from attention_export import export, verify


@pytest.fixture
def few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an export verified at two lengths, so that it takes a second in place of five."""
    monkeypatch.setattr(verify, "LENGTHS", ((2, 7), (7, 2)))


@pytest.fixture
def few_graphs(few_lengths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an export write what a CPU needs: without the graphs of CUDA and of pooled rows, in half of the time."""
    attend_graphs = export.attend_graphs
    monkeypatch.setattr(
        export, "attend_graphs", lambda block: [each for each in attend_graphs(block) if not each[1].explicit]
    )
    monkeypatch.setattr(export, "pool_graph", lambda _: None)
