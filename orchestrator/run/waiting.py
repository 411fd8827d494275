"""Says what a command does while nothing else is on the screen.

On a terminal it is one line that counts the seconds and goes away when the work is done. In a log
it is a line now and then, and none for work that is quick. Errors say the rest.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

SHOWN_AFTER = 0.5  # seconds, on a terminal
SAID_EVERY = 8.0  # seconds, in a log
CLEAR = "\r\x1b[2K"


@contextmanager
def waiting(words: str) -> Iterator[None]:
    """Show what is being done until the block ends."""
    ended, stream = threading.Event(), sys.stderr
    show = _count if stream.isatty() else _log
    thread = threading.Thread(target=show, args=(words, ended, stream), name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _count(words: str, ended: threading.Event, stream: TextIO) -> None:
    begun = time.monotonic()
    if ended.wait(SHOWN_AFTER):
        return
    while True:
        line = f"{words} ... {time.monotonic() - begun:.0f} s"
        _write(stream, f"{CLEAR}{line[: shutil.get_terminal_size().columns - 1]}")
        if ended.wait(1.0):
            _write(stream, CLEAR)
            return


def _log(words: str, ended: threading.Event, stream: TextIO) -> None:
    begun = time.monotonic()
    while not ended.wait(SAID_EVERY):
        _write(stream, f"{words} ... {time.monotonic() - begun:.0f} s\n")


def _write(stream: TextIO, text: str) -> None:
    with suppress(OSError, ValueError):  # the terminal is gone, or a test has closed its stream
        stream.write(text)
        stream.flush()
