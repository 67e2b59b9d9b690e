"""Description of the machine of a run."""

import os
import platform
import sys
from pathlib import Path


def describe() -> dict[str, str]:
    """Return the machine's processor, memory and limits as cells of a table."""
    facts = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    cpu = {name.strip(): value.strip() for name, value in facts.items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    vectors = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if name in cpu.get("flags", "").split()]
    return {
        "processor": " ".join((cpu.get("model name", platform.machine()), *vectors)),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} usable",
        "memory": f"{memory:.0f} GiB",
        "cgroup": ", ".join(_limits()) or "no limit",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "system": f"Linux {platform.release()}",
        # A Python built without optimization is a fifth slower than a distribution's.
        "Python": f"{platform.python_version()}, {'the system' if sys.base_prefix == '/usr' else 'not the system'}'s",
    }


def _limits() -> list[str]:
    """Return the cgroup limits of version 2 and version 1, if set."""
    paths = ("cpu.max", "memory.max", "cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes")
    limits = []
    for path in map(Path("/sys/fs/cgroup").joinpath, paths):
        try:
            limit = path.read_text().strip()
        except OSError:
            continue
        if not limit.startswith(("max", "-1", "9223372036854")):  # no limit
            limits.append(f"{path.name} {limit}")
    return limits
