"""Runs an extension's text, and says where in it an error arose.

Takes an extension; gives its module, loaded once in a process, under a private name that no import
statement finds. What is run is the text whose digest was planned, never a file that lies somewhere.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from jobs.contract import StageError
from jobs.extensions.spec import Extension, Part

_LONGEST = 160  # characters of an error's message


class _Text(importlib.abc.InspectLoader):
    """A loader of the text that an extension carries."""

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def get_source(self, fullname: str) -> str:
        """The text; tracebacks show its lines."""
        return self._extension.text

    def exec_module(self, module: ModuleType) -> None:
        """Run the text as the module."""
        code = compile(self._extension.text, self._extension.file, "exec", dont_inherit=True)
        exec(code, module.__dict__)


def load(part: Part) -> Any:
    """The class or function of an extension. Raises StageError, with the line, where it fails."""
    extension = part.extension
    name = f"_nml_extension_{extension.name}_{extension.sha256}"
    module = sys.modules.get(name)
    if module is None:
        loader = _Text(extension)
        spec = importlib.util.spec_from_loader(name, loader, origin=extension.file)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            with blaming(extension):
                loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    try:
        return getattr(module, part.name)
    except AttributeError:
        raise StageError(f"{extension.file} defines no {part.name}; correct its name") from None


@contextmanager
def blaming(extension: Extension) -> Iterator[None]:
    """A context that makes an error of the extension's code one sentence with file and line."""
    try:
        yield
    except StageError:
        raise
    except (Exception, SystemExit) as error:  # code that exits would end the sweep without a word
        raise StageError(sentence(extension, error)) from error


def sentence(extension: Extension, error: BaseException) -> str:
    """The error in one sentence, with the last line of the extension that led to it."""
    line: int | None = None
    if isinstance(error, SyntaxError) and error.filename == extension.file:
        line = error.lineno
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == extension.file:
            line = frame.lineno
    where = extension.file if line is None else f"{extension.file}, line {line}"
    try:
        message = str(error)
    except Exception:  # of an exception whose text is code, too
        message = ""
    lines = [text.strip() for text in message.splitlines() if text.strip()]
    reason = textwrap.shorten(lines[0], _LONGEST, placeholder=" ...") if lines else "no message"
    return f"{where}: {type(error).__name__}: {reason}"
