"""The predicted and the true peak of one answer, in a process of its own: `measure_peak.py VERSION CASE LENGTH`."""

import ctypes
import sys
from pathlib import Path

import numpy as np
from attention_proto.allocator import keep_freed
from attention_proto.masks import Mask
from attention_server.contexts.store import HeldMemories, MemoryStore
from attention_server.domain.limits import Limits
from attention_server.domain.messages import NO_MASK, OutputSpec, Sequence
from attention_server.inference.engine.onnxruntime import OnnxRuntime
from attention_server.inference.engine.protocol import Run
from attention_server.repository.loader import load

LIMITS = Limits(sequences=1, scores_bytes=2**40, answer_bytes=2**40, memory_ttl=1.0)
CASES = {
    "whole": (OutputSpec("weights"), NO_MASK),
    "top 8": (OutputSpec("weights", top_k=8), NO_MASK),
    "mean": (OutputSpec("weights", reduce="mean", top_k=8), NO_MASK),
    "causal mean": (OutputSpec("weights", reduce="mean", top_k=8), Mask(causal="top_left")),
    "256 rows": (OutputSpec("weights", rows=tuple(range(256)), top_k=16), NO_MASK),
    "entropy": (OutputSpec("entropy"), NO_MASK),
    "rollout": (OutputSpec("weights", fold="rollout"), NO_MASK),
    "output": (OutputSpec("output"), NO_MASK),
    "output, temperature": (OutputSpec("output"), NO_MASK),
}


def status(name: str) -> int:
    """Return an entry of this process's status, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def answer(model, spec, mask, temperature, length):
    """Return the predicted bytes and those that the process had more at its peak."""
    width = model.layers[0].about.query_dim
    plan = model.plan((spec,), (), temperature)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident
    query = np.random.default_rng(0).standard_normal((length, width), np.float32)
    ((prepared, profile),) = model.checker.prepare(
        Sequence(query=query), plan, mask, HeldMemories(MemoryStore(1)), LIMITS
    )
    model.answer([prepared], plan.plan, Run())()
    return profile.stage_bytes, status("VmHWM") - before


def main() -> None:
    keep_freed()
    model = load(Path(sys.argv[1]), OnnxRuntime("cpu", 1), 2**30)
    case = (*CASES[sys.argv[2]], 2.0 if "temperature" in sys.argv[2] else None)
    answer(model, *case, 300)
    # Loading leaves freed memory with the arena and the allocator, by how many shapes it had time to measure.
    model.release()
    ctypes.CDLL(None).malloc_trim(0)
    print(*answer(model, *case, int(sys.argv[3])))


if __name__ == "__main__":
    main()
