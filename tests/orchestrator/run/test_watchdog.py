"""A process that ends without a message leaves a sentence."""

import subprocess
import sys

import pytest

from orchestrator.run.watchdog import ENDED

IN_THE_BLOCK = """
import os, sys
from orchestrator.run.watchdog import watchdog
with watchdog():
    {}
"""


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        ("os._exit(1)", True),  # as Ray ends a driver whose raylet is gone
        ("os.kill(os.getpid(), 9)", True),
        ("pass", False),
        ("sys.exit(3)", False),
        ("raise KeyboardInterrupt", False),
        ("os.killpg(0, 2)", False),  # Ctrl-C, which reaches the shell too
    ],
)
def test_only_a_process_that_ends_inside_the_block_leaves_the_sentence(
    happens: str, told: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_BLOCK.format(happens)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (ENDED in done.stderr) == told, done.stderr
