"""A shell that says when this process has ended without a message.

A process that is killed prints nothing. Ray, too, ends a driver at once and without a message, when
the driver needs a raylet that is gone. The shell waits at a pipe: it ends when this process tells
it to, and prints a sentence when the pipe closes before.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ENDED = (
    "This command ended without a message: its process was killed, or Ray ended it because Ray's "
    "own processes are gone. Finished steps are kept; the same command continues from here."
)
WAIT = 'trap "" INT TERM HUP; read -r told || printf "\\n%s\\n" "$0" >&2'


@contextmanager
def watchdog() -> Iterator[None]:
    """Print ENDED on the standard error if this process ends inside the block."""
    try:
        shell = subprocess.Popen(["sh", "-c", WAIT, ENDED], stdin=subprocess.PIPE, bufsize=0)
    except OSError:  # no shell, or no memory for one: what runs in the block may still do well
        yield
        return
    assert shell.stdin is not None
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            shell.stdin.write(b"\n")
        shell.stdin.close()
        shell.wait()
