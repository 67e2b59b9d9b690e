"""The cores and the memory that this process may use: of the machine, or of the cgroups around the process."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_QUOTAS = ((CGROUPS / "cpu.max",), (CGROUPS / "cpu/cpu.cfs_quota_us", CGROUPS / "cpu/cpu.cfs_period_us"))


def usable_cores() -> int:
    """Return the number of cores for this process: the cgroup's quota if there is one, else the affinity."""
    cores = len(os.sched_getaffinity(0))
    for files in CGROUP_QUOTAS:
        try:
            quota, period = map(int, " ".join(file.read_text() for file in files).split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0:  # version 1 has -1 for no quota
            return max(1, min(cores, quota // period))
    return cores


def memory_limits(groups: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Return the files that may limit this process's memory, for both versions of cgroups.

    These are the ones of its own groups and of all groups around them; inside a container, the ones at the root.

    Args:
        groups: the file that lists the process's groups, a line `ID:CONTROLLERS:PATH` each.
    """
    files = [CGROUPS / "memory.max", CGROUPS / "memory/memory.limit_in_bytes"]
    lines = groups.read_text().splitlines() if groups.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        is_second = not controllers
        if is_second or "memory" in controllers.split(","):
            root, name = (CGROUPS, "memory.max") if is_second else (CGROUPS / "memory", "memory.limit_in_bytes")
            group = root / path.lstrip("/")
            files += [each / name for each in (group, *group.parents) if each != root and each.is_relative_to(root)]
    return files


CGROUP_LIMITS = memory_limits()


def machine_memory() -> int:
    """Return the bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Return the bytes of memory for this process: the least limit of its cgroups, or the machine's memory."""
    memory = machine_memory()
    for limit in CGROUP_LIMITS:
        try:
            memory = min(memory, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return memory
