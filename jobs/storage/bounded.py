"""Reads the files that users name, bounded in time and memory.

Only regular files are read: a FIFO waits for ever, and a device like /dev/zero has no end. A text
that a person writes has a largest size. A compressed stream may grow only so far. All faults are
`OSError`, so callers name the file and the remedy.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Any

TEXT_BYTES = 64 << 20
"""Most bytes of a text file that a person writes: an experiment, a task, a list of names."""

IMAGE_BYTES = 1 << 30
"""Most bytes of an encoded image, as a file or as a member of a tar."""

GROWTH, ALLOWANCE = 100, 64 << 20
"""A compressed file may decompress to GROWTH times its size, and to ALLOWANCE bytes in any case."""


class TooLargeError(OSError):
    """A file is, or decompresses to, more bytes than are read."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError for a local path that is a FIFO, a device or a socket (links are followed).

    A folder passes: to open it raises an error of its own.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a FIFO, a device or a socket, not a file")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a local UTF-8 file (with or without a byte order mark) of at most TEXT_BYTES.

    Raises OSError or UnicodeDecodeError.
    """
    require_regular(path)
    with open(path, "rb") as file:
        data = file.read(TEXT_BYTES + 1)
    if len(data) > TEXT_BYTES:
        raise TooLargeError(f"it has more than {TEXT_BYTES >> 20} MB, too many for such a text")
    return data.decode("utf-8-sig")


class BoundedStream(io.RawIOBase):
    """A stream that is decompressed from `compressed` bytes, up to its largest allowed size.

    A read beyond it raises TooLargeError: a small file can grow a thousandfold, and fill memory.
    """

    def __init__(self, opened: Any, compressed: int) -> None:
        self._opened, self._left = opened, ALLOWANCE + GROWTH * compressed

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes, less only at the end."""
        data = self._opened.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise TooLargeError(
                f"it decompresses to more than {GROWTH} times its size and {ALLOWANCE >> 20} MB"
            )
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, as `RawIOBase.read`; never asks for memory beyond the limit."""
        if size is None or size < 0:
            return self.readall()
        return super().read(min(size, self._left + 1)) or b""
