"""The memory that a long sequence is predicted to take, against what it takes in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("measure_peak.py")


@pytest.mark.parametrize(
    ("case", "length", "model"),
    [
        ("whole", 3000, "multi"),
        ("top 8", 12000, "multi"),
        pytest.param("causal mean", 12000, "multi", marks=pytest.mark.long),
        ("entropy", 8192, "multi"),
        ("rollout", 3000, "multi"),
        ("output", 16384, "multi"),
        ("output", 16384, "multi-head"),  # without scores
        ("top 8", 8192, "multi-head"),  # head by head
        ("256 rows", 32768, "multi-head"),
        pytest.param("mean", 8192, "multi-head", marks=pytest.mark.long),
        pytest.param("entropy", 8192, "multi-head", marks=pytest.mark.long),
        pytest.param("output, temperature", 8192, "multi", marks=pytest.mark.long),
    ],
)
def test_the_predicted_peak_is_the_true_one(repository, case, length, model):
    """Predicted and true peak of an answer agree within a quarter, over ways, outputs and lengths."""
    done = subprocess.run(
        [sys.executable, PROGRAM, repository / model / "1", case, str(length)],
        capture_output=True,
        text=True,
        check=True,
    )
    predicted, true = map(int, done.stdout.split())
    assert predicted == pytest.approx(true, rel=0.25)
