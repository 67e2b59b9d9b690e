"""The example of passages: trained, imported and asked, it tells which passage an answer was read from."""

import importlib.util
import sys
from pathlib import Path

import pytest
from serving import ROOT, start_server


@pytest.mark.long
def test_the_passage_of_an_answer_is_told(tmp_path: Path) -> None:
    """Held-out facts are looked up, and the passage of the fact has the most weight, with a baseline too."""
    spec = importlib.util.spec_from_file_location("passages", ROOT / "docs/examples/passages.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["passages"] = example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    figures = example.learn(tmp_path)
    assert figures["exact"] > 0.95
    assert figures["passage"] > 0.95
    with start_server(tmp_path) as server:
        for name in example.NAMES[:5]:
            parts = example.ask(server.grpc, name)
            assert name in max(parts, key=parts.__getitem__).split()
