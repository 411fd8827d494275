"""What a file is, by its first bytes, where its reader expected something else; and what to do.

Takes the bytes that a file begins with; gives words that follow its name in a message. Decides
nothing: a reader asks when it cannot read a file.
"""

from __future__ import annotations

import codecs

_MAGIC = {
    b"\x1f\x8b": "is compressed (gzip); give its name the ending .gz",
    b"BZh": "is compressed (bzip2); decompress it (`bunzip2`)",
    b"\xfd7zXZ\0": "is compressed (xz); decompress it (`unxz`)",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); decompress it (`unzstd`)",
    b"PK\3\4": "is a ZIP archive, as Excel's files are; unpack it, or save the table as CSV",
    b"PAR1": "is a Parquet file; read it with `kind: parquet`",
    codecs.BOM_UTF32_LE: "is UTF-32 text; convert it (`iconv -f UTF-32 -t UTF-8`)",
}


def known_format(begin: bytes) -> str | None:
    """Words such as "is compressed (xz); decompress it"; None for bytes of no known format."""
    return next((words for magic, words in _MAGIC.items() if begin.startswith(magic)), None)


def other_format(begin: bytes) -> str | None:
    """The same words on what should be UTF-8 text; text with NUL bytes is probably UTF-16."""
    known = known_format(begin)
    if known is not None:
        return known
    marked = begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not marked and b"\0" not in begin:
        return None
    kind = "UTF-16" if marked else ("UTF-16BE" if begin.startswith(b"\0") else "UTF-16LE")
    return f"is not UTF-8 text, but probably UTF-16; convert it (`iconv -f {kind} -t UTF-8`)"
