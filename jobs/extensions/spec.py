"""An extension as a step carries it: the name, the digest and the text of one Python file.

The digest bears identity and the text does not, so that drift is one field: the source of the file
changed. The text travels with the step to every worker, on any node. Imports nothing heavy.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from jobs.contract import NOT_SEMANTIC, Spec
from jobs.storage.folder import Folder

SUFFIX = ".py"
COPIES = "extension"
"""The folder of a step's output with the extensions that it used."""
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


def reference(text: str) -> str:
    """The text, if it names a part of an extension; else ValueError."""
    if not re.fullmatch(f"{_NAME}:{_NAME}", text, re.ASCII):
        raise ValueError(
            "is no name of an extension's part, such as my_methods:Shrinkage (the file without "
            ".py, a colon, the class or function)"
        )
    return text


Reference = Annotated[str, AfterValidator(reference)]
"""A part of an extension: the file's name without `.py`, a colon, and the class or function."""


def extension_of(text: str) -> str | None:
    """The extension in which a name's part is; None for a name without a colon."""
    name, colon, _ = text.partition(":")
    return name if colon else None


def is_name(text: str) -> bool:
    """Whether a file of this name (without `.py`) can be an extension."""
    return re.fullmatch(_NAME, text, re.ASCII) is not None


class Extension(Spec):
    """One Python file of a researcher's."""

    name: str = Field(description="the file's name, without `.py`")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of its text"
    )
    text: Annotated[str, NOT_SEMANTIC] = Field(description="what the file holds")

    @staticmethod
    def of(name: str, text: str) -> Extension:
        """The extension of a file's name (without `.py`) and text."""
        return Extension(name=name, sha256=_digest(text), text=text)

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Extension:
        if _digest(self.text) != self.sha256:
            raise ValueError(f"the text of extension {self.name} is not the one that was planned")
        return self

    def semantic(self) -> dict[str, Any]:
        """The digest, under the extension's name."""
        return {self.name: self.sha256}

    @property
    def file(self) -> str:
        """The file's name, by which messages call it."""
        return f"{self.name}{SUFFIX}"

    def part(self, reference: str) -> Part:
        """The part of it that a reference names."""
        return Part(self, reference.partition(":")[2])

    def keep(self, output: Folder) -> None:
        """Write a copy into a step's folder, for people to read. Nothing ever runs it."""
        output.write_bytes(f"{COPIES}/{self.file}", self.text.encode())


@dataclass(frozen=True)
class Part:
    """A class or function of an extension."""

    extension: Extension
    name: str

    def __str__(self) -> str:
        return f"{self.extension.name}:{self.name}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
