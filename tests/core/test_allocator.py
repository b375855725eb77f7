from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import torch
from seqwm.core.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(10 << 20) for _ in range(4)]  # 40 MB each, more than glibc keeps on its own account
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: str) -> int:
    """Page faults while 160 MB are asked for and freed ten times."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, kept], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="no glibc here"
)
def test_memory_that_was_freed_is_not_asked_of_the_system_again():
    assert faults("kept") < 1000
    assert faults("given back") > 100_000
