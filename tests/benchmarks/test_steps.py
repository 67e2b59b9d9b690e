"""`python -m benchmarks.steps` measures single steps of a decoder, in process and over gRPC."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from serving import HANG, ROOT, clean_env

from benchmarks import steps


def test_ratios_are_of_steps_a_second_within_rounds() -> None:
    """A drift of the machine between rounds does not count; a slower step over gRPC is a ratio below 1."""
    seconds = {
        steps.SERVICE: 0.010,
        steps.EIGHT: 0.032,
        steps.GENERATED: 0.010,
        steps.SERVED: 0.0125,
        steps.FUSED: 0.009,
        steps.SDPA: 0.025,
    }
    by_round = {name: [each * drift for drift in (1, 2, 5)] for name, each in seconds.items()}
    assert list(steps.ratios(by_round).values()) == pytest.approx([0.9, 2.5, 2.5, 0.8])
    differences = {steps.SERVICE: [0.0048, 0.012], steps.SITES: [0.004, 0.010]}
    assert list(steps.ratio_of_differences(differences).values()) == pytest.approx([1.2])


def test_a_wrong_token_is_not_measured() -> None:
    """Ids of the next token, and logits, are those of `transformers`."""
    right = np.array([0.0, 3.0, 1.0])
    steps.check({steps.SDPA: lambda _: right, steps.SERVED: lambda _: 1, steps.EIGHT: lambda _: None})
    for wrong in (2, right + 0.01):
        with pytest.raises(AssertionError, match=steps.SERVED):
            steps.check({steps.SDPA: lambda _: right, steps.SERVED: lambda _, found=wrong: found})


@pytest.mark.long
def test_every_contender_takes_steps(tmp_path: Path) -> None:
    """The short form makes the decoder, starts the server, and has seconds and ratios of every contender."""
    command = [ROOT / ".venv-dev/bin/python", "-m", "benchmarks.steps", tmp_path, "--quick"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=clean_env(), check=True, timeout=HANG, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout)
    long, short = str(max(steps.QUICK)), str(min(steps.QUICK))
    difference = f"{long} less {steps.QUICK_BASE}"
    assert found.keys() == {short, long, difference, "ratios"}
    assert found[long].keys() == {
        steps.SERVICE,
        steps.EIGHT,
        steps.GENERATED,
        steps.SERVED,
        steps.FUSED,
        steps.SDPA,
    }
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found[long].values())
    assert found["ratios"].keys() == {short, long, difference}
