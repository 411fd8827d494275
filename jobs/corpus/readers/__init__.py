"""Readers: the files of a source as rows with stable keys; one module for each kind of source.

A reader takes its spec and gives the source's classes and its *units of work*: pieces that any
machine can read independently, each large enough to be worth a task. Keys are unique and come from
the source's own names, never from the order of reading. Encoded images are not changed. A reader
decides neither parts nor shards nor order, decodes nothing and writes nothing.
"""

from __future__ import annotations

from typing import assert_never

from jobs.corpus import reader_spec as specs
from jobs.corpus.readers.digits import Digits
from jobs.corpus.readers.ilsvrc import IlsvrcTar
from jobs.corpus.readers.imagefolder import ImageFolder
from jobs.corpus.readers.maskfolder import MaskFolder
from jobs.corpus.readers.parquet import Parquet
from jobs.corpus.readers.remarks import Remarks
from jobs.corpus.readers.rows import Classes, Reader, Unit
from jobs.corpus.readers.table import Table
from jobs.corpus.readers.text_jsonl import TextJsonLines
from jobs.corpus.readers.text_parquet import TextParquet
from jobs.corpus.readers.text_table import TextTable
from jobs.corpus.readers.texts import Texts
from jobs.corpus.readers.webdataset import WebDataset

__all__ = ["Classes", "Digits", "Reader", "Unit", "reader_of"]


def reader_of(spec: specs.Reader, known: Classes | None = None) -> Reader:
    """The reader that an experiment file names by `kind`.

    With `known`, what its `classes` gave before, no label column is read again to know them.
    """
    match spec:
        case specs.DigitsReader():
            return Digits(spec)
        case specs.ImageFolderReader():
            return ImageFolder(spec)
        case specs.IlsvrcTarReader():
            return IlsvrcTar(spec)
        case specs.WebDatasetReader():
            return WebDataset(spec)
        case specs.ParquetReader():
            return Parquet(spec, known)
        case specs.TableReader():
            return Table(spec, known)
        case specs.MaskFolderReader():
            return MaskFolder(spec)
        case specs.RemarksReader():
            return Remarks(spec)
        case specs.TextParquetReader():
            return Texts(spec, TextParquet(spec), known)
        case specs.TextTableReader():
            return Texts(spec, TextTable(spec), known)
        case specs.JsonLinesReader():
            return Texts(spec, TextJsonLines(spec), known)
        case _:
            assert_never(spec)
