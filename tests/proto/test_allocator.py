"""The memory that a process keeps after messages."""

import platform
import subprocess
import sys

import pytest

WRITES = """
import resource, sys
from attention_proto.allocator import keep_freed
from attention_proto.attention.v1.attention_pb2 import Tensor
if sys.argv[1] == "kept":
    keep_freed()
tensor = Tensor(data=bytes(1_000_000))
tensor.SerializeToString()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    tensor.SerializeToString()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", WRITES, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_what_is_freed_is_kept():
    """A large message is written into the pages of the one before, which glibc by itself gives back each time."""
    assert faults("kept") < faults("as it is") / 10
