"""Memory that stays resident after versions are unloaded or evicted, and the cost of a request's lease.

.venv-dev/bin/python benchmarks/unload.py
"""

import logging
import re
import shutil
import subprocess
import sys
import timeit
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from attention_server.contexts.store import MemoryStore
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.repository import drain, policy, repository
from rich.console import Console

EXPORTER = Path(__file__).parents[1] / ".venv-dev/bin/attention-export"
SWAPS = 30
LEASES = 100_000


def resident() -> int:
    """Return this process's memory, in MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


def swap(models: Path) -> None:
    """Load a version, replace it `SWAPS` times, unload the last one; print resident memory at each point."""
    loads = policy.Policy("explicit", at_start=("*",))
    served = repository.Repository(models, OnnxRuntime("cpu", threads=1), MemoryStore(2**20), loads)
    levels = {"before": resident()}
    served.load()
    levels["loaded"] = resident()
    for version in range(1, SWAPS + 1):
        shutil.copytree(models / f"wide/{version}", models / f"wide/{version + 1}")
        shutil.rmtree(models / f"wide/{version}")
        served.load_model("wide")
    levels[f"after {SWAPS} swaps"] = resident()

    def hold() -> None:
        with served.lease("wide"):
            pass

    lease = min(timeit.repeat(hold, number=LEASES, repeat=5)) / LEASES
    shutil.copytree(models / "wide", models / "beside")
    served.load_model("beside")
    levels["two"] = resident()
    served.residency.budget = 1
    served.residency.make_room()
    levels["one evicted"] = resident()
    served.unload_model("beside")
    served.unload_model("wide")
    levels["unloaded"] = resident()
    Console().print(
        ", ".join(f"{name} {level} MiB" for name, level in levels.items()) + f"; a lease {lease * 1e6:.2f} us"
    )


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if len(sys.argv) > 1:
        if "keep" in sys.argv:
            drain._trim = lambda: None  # noqa: SLF001 # the comparison without malloc_trim
        swap(Path(sys.argv[1]))
        return
    for keep in ([], ["keep"]):
        with TemporaryDirectory() as models:
            block = [EXPORTER, "block", "multi_head", "--width", "384", "--heads", "12", "--name", "wide"]
            subprocess.run([*block, "--models", models], check=True, stderr=subprocess.DEVNULL)  # noqa: S603 # our own
            Console().print("with malloc_trim:" if not keep else "without:")
            subprocess.run([sys.executable, __file__, models, *keep], check=True)  # noqa: S603 # our own


if __name__ == "__main__":
    main()
