"""Corpora that are refused with a remedy, for the tests that follow it."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from followed import Table
from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index, read_part
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]
Settings = dict[str, Any]
TRAIN = {"train": 1, "validation": 0, "test": 0}


@dataclass
class Case:
    """A corpus that is refused, with what following the message needs."""

    folder: Path
    picture: Picture
    settings: Settings

    def reader(self, **fields: Any) -> None:
        self.settings["reader"] = {"path": str(self.folder / "source"), **fields}

    def text(self, name: str, content: str | bytes, **fields: Any) -> None:
        """A reader of one file with this content."""
        data = content.encode() if isinstance(content, str) else content
        (self.folder / name).write_bytes(data)
        self.settings["reader"] = {"path": str(self.folder / name), **fields}

    def parquet(self, file: str, names: object = None, **columns: Any) -> None:
        """A file of images of the source, and of texts."""
        rows = len(next(iter(columns.values())))
        texts = {"text": [f"t{n}" for n in range(rows)]}
        table = pa.table({"image": [self.picture(n) for n in range(rows)], **texts, **columns})
        if names is not None:
            meta = {"info": {"features": {"label": {"names": names}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(meta)})
        (self.folder / "source").mkdir(exist_ok=True)
        pq.write_table(table, self.folder / "source" / file)

    def images(self, *names: str) -> None:
        for number, name in enumerate(names):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(self.picture(number))

    def tar(self, name: str, order: Sequence[str]) -> None:
        """A tar of the source with these members, in this order."""
        for number, member in enumerate(sorted(order)):
            data = self.picture(number) if member.endswith("jpg") else b"a cat"
            (self.folder / member).write_bytes(data)
        (self.folder / "source").mkdir(exist_ok=True)
        words = ["tar", "-caf", f"source/{name}", *order]
        subprocess.run(words, cwd=self.folder, check=True)

    def set(self, path: str, value: Any) -> None:
        """Set a field of the corpus, as an experiment file would: `corpus.reader.where`."""
        *parents, last = path.removeprefix("corpus.").split(".")
        node = self.settings
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value

    def run(self, command: str) -> None:
        """Run a command line in the folder of the source."""
        subprocess.run(command, shell=True, cwd=self.folder / "source", check=True)

    def convert(self, command: str) -> None:
        """Run a filter over the source's file."""
        file = Path(self.settings["reader"]["path"])
        made = subprocess.run(command.split(), input=file.read_bytes(), stdout=-1, check=True)
        file.write_bytes(made.stdout)


Follow = Callable[[Case, re.Match[str]], None]


def check(cases: Table, name: str, folder: Path, picture: Picture, build: Build) -> None:
    """Build what a case refuses, follow its message, and build what it says then."""
    make, remedy, follow, wanted = cases[name]
    settings: Settings = {"name": "c", "parts": TRAIN, "max_bad_share": 0}
    refused = Case(folder, picture, settings)
    make(refused)
    reader: Mapping[str, Any] = refused.settings["reader"]
    refused.settings.setdefault("modality", "text" if "fields" in reader else "image")
    with pytest.raises((StageError, ValueError)) as caught:
        build(Corpus.model_validate(refused.settings), folder / "refused")
    message = str(caught.value)
    found = re.search(remedy, message)
    assert found is not None, message
    follow(refused, found)
    output, _ = build(Corpus.model_validate(refused.settings), folder / "built")
    classes = Index.read(output).classes
    column = "label" if classes else "caption"
    values = read_part(output, "train", [column])[column].to_pylist()
    assert sorted(classes[v] if classes else v for v in values) == wanted.split(
        "|" if "|" in wanted else None
    )
