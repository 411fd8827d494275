"""Memory that one step frees is reused by the next step, in any thread."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS, MEGABYTES = 60, 48
SCRIPT = f"""
import resource, threading, torch
from jobs.tuning.frozen.allocator import keep_freed_memory
KEEP
def steps():
    for _ in range({STEPS}):
        torch.empty({MEGABYTES} << 18).fill_(1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(line: str) -> int:
    """How many pages a process requests from the system during the steps, after `line` has run."""
    script = SCRIPT.replace("KEEP", line)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_steps_ask_the_system_for_few_pages_they_had_before() -> None:
    step = (MEGABYTES << 20) // 4096
    kept, given_back = faults("keep_freed_memory()"), faults("")
    assert given_back > 0.9 * STEPS * step
    assert kept < given_back / 3, "some at first, until the heap is as large as it needs to be"
