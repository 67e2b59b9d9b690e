"""`make bench-text` measures texts, against right answers alone."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from serving import HANG, ROOT, clean_env

from benchmarks.serving.results import Results
from benchmarks.text import plan
from benchmarks.text.fused import top_weights
from benchmarks.text.texts import Texts


def test_a_target_is_held_within_rounds_against_the_best_server() -> None:
    """Ratios are taken within rounds, so that a drift of the machine does not count; without figures nothing is met."""
    assert {each.met for each in plan.verdicts(Results())} == {None}
    results = Results()
    for number, drift in enumerate((1, 2, 5)):
        for contender, rate in ((plan.STREAMED, 182), (plan.ONE, 120), (plan.MOSEC, 100), (plan.TRITON, 50)):
            results.add("short-c32", contender.name, number, {"rate": rate * drift})
        results.add("top-c32", plan.STREAMED.name, number, {"rate": 160 * drift})
    found = {(each.load, each.promise): (each.met, each.found) for each in plan.verdicts(results)}
    assert found["8 to 24 tokens c32, streamed", f"at least 1.5 x {plan.ONE.name}"] == (True, "1.52 x")
    assert found["8 to 24 tokens c32, streamed", "at least 1.8 x the best server"] == (True, "1.82 x (mosec)")
    beside = "top 8 of two pairs beside pooled hidden, streamed"
    assert found[beside, "at least 0.85 x pooled hidden alone"] == (True, "0.88 x")


def test_wrong_answers_are_not_measured(tmp_path: Path) -> None:
    """A mean or a top weight that is off is refused, and so are keys with other weights."""
    rng = np.random.default_rng(0)
    hidden, weights = rng.random(4), rng.random((2, 5, 12))
    np.savez(tmp_path / "right.npz", **{"4/hidden/0": hidden, "4/weights/0": weights})
    (tmp_path / "texts.json").write_text('{"4": ["one"]}')
    texts, answer = Texts(tmp_path, "4"), {"hidden": hidden, **top_weights(weights)}
    texts.check(0, answer, top=True)
    for name in answer:
        with pytest.raises(AssertionError):
            texts.check(0, {**answer, name: answer[name][..., ::-1]}, top=True)


@pytest.mark.long
def test_the_report_has_every_way_of_one_load(tmp_path: Path) -> None:
    """One load without peers: every own way has a rate, and the peers a reason."""
    command = [ROOT / ".venv-dev/bin/python", "-m", "benchmarks.text", "--quick", "--build", tmp_path]
    command += ["--environments", tmp_path / "none", "--peers", "mosec", "--loads", "short-c32"]
    env = clean_env({"UV_OFFLINE": "1", "UV_NO_CACHE": "1"})  # prevents the installation of peers
    subprocess.run(list(map(str, command)), cwd=ROOT, env=env, check=True, timeout=HANG)
    report = (tmp_path / "text.md").read_text()
    for name in ("in process, padded 32, sorted", "Attention Service, unary", "Attention Service, streamed"):
        assert re.search(rf"^\| {name} \| [\d,]+(\\\*)? \(\d+\.\d\d\) \|$", report, re.MULTILINE)
    assert re.search(r"^\| mosec \| cannot be installed: .+ \|$", report, re.MULTILINE)
