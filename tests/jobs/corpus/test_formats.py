"""A file of another format than its reader's is named as what it is, with what to do."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from jobs.contract import StageError
from jobs.corpus.preview import preview
from jobs.corpus.readers import source
from jobs.corpus.readers.formats import other_format
from jobs.corpus.spec import Corpus

TEXT = b'{"text": "a", "label": "x"}\n'


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("t.csv", data)
    return stream.getvalue()


def read(path: Path, reader: Mapping[str, object]) -> None:
    """Read a file of names, or the first rows of a source."""
    if not reader:
        source.text(str(path))
        return
    modality = "text" if reader["kind"] == "jsonl" else "image"
    fields = {"name": "c", "modality": modality, "reader": {**reader, "path": str(path)}}
    preview(Corpus.model_validate(fields))


FORMATS: Mapping[str, Callable[[bytes], bytes]] = {
    "compressed (gzip); give its name the ending .gz": gzip.compress,
    "compressed (bzip2); decompress it (`bunzip2`)": bz2.compress,
    "compressed (xz); decompress it (`unxz`)": lzma.compress,
    "compressed (zstd); decompress it (`unzstd`)": lambda data: b"\x28\xb5\x2f\xfd" + data,
    "a ZIP archive, as Excel's files are; unpack it": zipped,
    "a Parquet file; read it with `kind: parquet`": lambda data: b"PAR1" + data,
    "UTF-32 text; convert it (`iconv -f UTF-32 -t UTF-8`)": lambda d: d.decode().encode("utf-32"),
    "UTF-16; convert it (`iconv -f UTF-16 -t UTF-8`)": lambda d: d.decode().encode("utf-16"),
    "UTF-16; convert it (`iconv -f UTF-16LE -t UTF-8`)": lambda d: d.decode().encode("utf-16-le"),
    "UTF-16; convert it (`iconv -f UTF-16BE -t UTF-8`)": lambda d: d.decode().encode("utf-16-be"),
}
READERS: Mapping[str, Mapping[str, object]] = {
    "t.csv": {"kind": "table", "label": "label"},
    "t.jsonl": {"kind": "jsonl", "fields": {}},
    "t.tar": {"kind": "webdataset"},
    "names.txt": {},
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (name, words)
        for name in READERS
        for words in FORMATS
        if (name, "UTF" in words) != ("t.tar", True)
        and (name, words[:9]) != ("names.txt", "a Parquet")
    ],
)
def test_a_file_of_another_format_is_named_as_what_it_is(
    name: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(FORMATS[words](TEXT))
    with pytest.raises(StageError) as caught:
        read(path, READERS[name])
    assert str(caught.value).startswith(f"{path}")
    assert words in str(caught.value)


def test_text_and_tars_are_no_other_format() -> None:
    assert other_format(TEXT) is None
    assert other_format("né".encode("latin-1")) is None


def test_names_in_another_encoding_are_told_how_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("a né\n".encode("latin-1"))
    with pytest.raises(StageError, match=r"not UTF-8 text; .* \(`iconv -f LATIN1 -t UTF-8`, say"):
        source.text(str(tmp_path / "names.txt"))
    (tmp_path / "t.csv").write_bytes("path,label\na.jpg,né\n".encode("latin-1"))
    with pytest.raises(StageError, match=r"a label, key or path that is not UTF-8 .* LATIN1"):
        read(tmp_path / "t.csv", READERS["t.csv"])


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_table_is_said_to_be_empty(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(StageError, match=r"t\.csv is empty; correct the reader's path"):
        read(tmp_path / "t.csv", READERS["t.csv"])
