"""What a stage is given, and what it gives back.

A stage is a function `run(works, hooks)` in its `job.py`. It receives every step of its kind that
is ready, so that it can share processes between them, and reports each one by itself: a step that
fails is reported with its error, and its siblings go on. A stage writes only into `Work.output`
and `Work.scratch`; the caller commits the output once the stage has reported it.

This module imports nothing heavy, because the command line imports it through the specs.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

from jobs.redaction import redact
from jobs.storage.folder import Folder

NOT_SEMANTIC = "not-semantic"
"""Marks a field that changes how a result is obtained, never what it is (workers, say)."""

PATH = "path"
"""Marks a field that holds a path, or several: a URI, absolute, or relative to some folder."""

FLAT = "flat"
"""Marks a nested spec whose fields bear identity as if they were fields of the spec around it."""

SILENT = "silent"
"""Marks a field that bears identity only when it has another value than its default.

For a field that is added later: results made before it existed keep their identity.
"""

SLUG = r"^[a-z0-9][a-z0-9._-]*$"

MOST_LETTERS = 80
"""The most letters of a name."""


def _slug(text: str) -> str:
    if len(text) > MOST_LETTERS or not re.fullmatch(SLUG, text, re.ASCII):
        raise ValueError(
            f"a name begins with a letter from a to z or a digit, and has only these, dots, dashes "
            f"and underscores, at most {MOST_LETTERS}; a title may have any letters"
        )
    return text


Slug = Annotated[str, AfterValidator(_slug)]
"""A name that an address can hold: small letters, digits, dot, dash, underscore."""


def _too_large(value: Any) -> bool:
    """Whether a number, or one inside a list or fields, does not fit 64 bits."""
    if isinstance(value, Mapping):
        return any(map(_too_large, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_too_large, value))
    return isinstance(value, int) and abs(value) >= 2**63


class Spec(BaseModel):
    """Base of all models of experiment files. Refuses unknown fields and numbers that are not
    finite; values are frozen.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    protocol: ClassVar[int] = 1  # of a step's spec: raised when its stage's results change meaning

    @field_validator("*")
    @classmethod
    def _fits_64_bits(cls, value: Any) -> Any:
        if _too_large(value):
            raise ValueError("is too large a number; give one below 2^63")
        return value

    def semantic(self) -> dict[str, Any]:
        """The fields that bear identity, as JSON values (those marked NOT_SEMANTIC left out)."""
        kept: dict[str, Any] = {}
        dumped = self.model_dump(mode="json")
        for name, info in type(self).model_fields.items():
            if NOT_SEMANTIC in info.metadata:
                continue
            value = getattr(self, name)
            if SILENT in info.metadata and value == info.default:
                continue
            if FLAT in info.metadata:
                kept |= value.semantic()
            else:
                kept[name] = _semantic_value(value, dumped[name])
        return kept

    def circumstances(self) -> dict[str, Any]:
        """What a manifest records of how the result is obtained, beside versions and machine."""
        return {}

    def of_base(self, base: type[Spec]) -> dict[str, Any]:
        """The values of the fields that `base` declares, for another spec that inherits from it."""
        if not isinstance(self, base):
            raise TypeError(f"{type(self).__name__} is no {base.__name__}")
        return {name: getattr(self, name) for name in base.model_fields}

    def paths(self) -> Iterator[str]:
        """Every path in a PATH field, of this spec and of the specs within it."""
        for name, info in type(self).model_fields.items():
            yield from _paths(getattr(self, name), PATH in info.metadata)

    def with_absolute_paths(self, folder: Folder | None = None) -> Self:
        """A copy with absolute paths: relative ones start from `folder`, else the working folder.

        A URI stays a URI, and `~` is the user's home.
        """
        changed = {}
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            made = _with_absolute_paths(value, PATH in info.metadata, folder)
            if made != value:
                changed[name] = made
        return self.model_copy(update=changed) if changed else self


def truth_value_fault(models: Sequence[type[Spec]], data: Any, within: str = "") -> str | None:
    """One sentence if true or false stands where it would become 1 or 0; else None.

    `data` is what one of the models is to be read from, `within` its dotted path and a dot.
    """
    for name, value in data.items() if isinstance(data, dict) else ():
        kinds = [m.model_fields[name].annotation for m in models if name in m.model_fields]
        found = _truth_value(value)
        if found is not None and kinds and not any(map(_mentions_bool, kinds)):
            return (
                f"{within}{name} is {str(found).lower()}, which is neither a number nor text; put "
                f"it in quotes if it is a word"
            )
        inner = [spec for kind in kinds for spec in specs_in(kind)]
        # A mapping of names to specs has one level of keys more, which are no fields.
        for path, item in _items(f"{within}{name}.", value, inner):
            if (fault := truth_value_fault(inner, item, path)) is not None:
                return fault
    return None


def _items(path: str, value: Any, inner: Sequence[type[Spec]]) -> Iterator[tuple[str, Any]]:
    """The mappings in a field's value that may be specs of these types, with their paths."""
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if not isinstance(item, dict) or not inner:
            continue
        yield path, item
        for key, below in item.items():
            if isinstance(below, dict) and not any(key in m.model_fields for m in inner):
                yield f"{path}{key}.", below


def _truth_value(value: Any) -> bool | None:
    """The value, or the first one in it, that is true or false."""
    if isinstance(value, (list, tuple)):
        return next((item for item in value if isinstance(item, bool)), None)
    return value if isinstance(value, bool) else None


def _mentions_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_mentions_bool, get_args(annotation)))


def specs_in(annotation: Any) -> list[type[Spec]]:
    """The specs that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for inner in get_args(annotation) for spec in specs_in(inner)]


def _paths(value: Any, is_path: bool) -> Iterator[str]:
    if isinstance(value, Spec):
        yield from value.paths()
    elif isinstance(value, str) and is_path:
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(item, is_path)


def _with_absolute_paths(value: Any, is_path: bool, folder: Folder | None) -> Any:
    if isinstance(value, Spec):
        return value.with_absolute_paths(folder)
    if isinstance(value, str) and is_path:
        return _absolute(value, folder)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_absolute_paths(item, is_path, folder) for item in value)
    if isinstance(value, Mapping):
        return {k: _with_absolute_paths(item, is_path, folder) for k, item in value.items()}
    return value


def _absolute(path: str, folder: Folder | None) -> str:
    if folder is None or "://" in path or Path(path).expanduser().is_absolute():
        return Folder.of(path).uri
    return (folder / path).uri


def _semantic_value(value: Any, dumped: Any) -> Any:
    if isinstance(value, Spec):
        return value.semantic()
    if isinstance(value, (list, tuple)):
        return [_semantic_value(v, d) for v, d in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {str(k): _semantic_value(v, dumped[str(k)]) for k, v in value.items()}
    return dumped


class StageError(Exception):
    """A step cannot be done with its inputs. One sentence: what is wrong, where, what to do.

    Raised by a stage for faults that trying again cannot cure (a NaN loss, no row left, a caption
    without a partner to swap with). It crosses process borders as a `Failure`.
    """


class PartError(RuntimeError):
    """An error of another process that is not a StageError. Its message names the error's type."""


@dataclass(frozen=True)
class Failure:
    """A failed part, as text that processes can exchange. It holds no key (`jobs.redaction`).

    The other process may not know the error's class, or may not be able to unpickle it.
    """

    sentence: str  # a StageError's message; of another error, its type and its message's last line
    final: bool  # a StageError: trying again cannot cure it; else a defect or a bad machine
    traceback: str = ""
    address: str = ""  # of the step

    @staticmethod
    def of(
        error: BaseException, address: str = "", final: tuple[type[BaseException], ...] = ()
    ) -> Failure:
        """The failure of an error; `final`: other types that are one sentence, like StageError."""
        cause = _root_cause(error)
        plain: tuple[type[BaseException], ...] = (StageError, *final)
        if isinstance(cause, (*plain, PartError)):
            sentence = str(cause)
        else:
            lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
            sentence = f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"
        trace = "".join(traceback.format_exception(error))
        return Failure(redact(sentence), isinstance(cause, plain), redact(trace), address)

    def as_error(self) -> StageError | PartError:
        """The failure as an error of this process, its traceback kept as a note."""
        error = (StageError if self.final else PartError)(self.sentence)
        if self.traceback:
            error.add_note(self.traceback)
        return error

    def as_json(self) -> str:
        """As JSON, for files and tables that processes exchange; `from_json` reads it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Failure:
        """The failure that `as_json` wrote."""
        return Failure(**json.loads(text))


def _root_cause(error: BaseException) -> BaseException:
    """The error that a worker raised, without Ray's wrappers."""
    cause = getattr(error, "cause", None)
    return _root_cause(cause) if isinstance(cause, BaseException) else error


@dataclass(frozen=True)
class Work:
    """One step to be done by a stage."""

    address: str  # readable name, and the output folder's path under the storage root
    fingerprint: str  # hash of everything that can change the result
    spec: Spec  # the stage's own spec type
    inputs: Mapping[str, Folder]  # role -> output folder of the step it reads, a `Committed`
    output: Folder  # empty folder; committed by the caller after the stage reports it
    scratch: Folder  # survives interruption; bound to the fingerprint; removed after the commit

    @property
    def root(self) -> Folder:
        """The storage root, for what no step owns: ledgers."""
        uri, ending = self.output.uri, f"/{self.address}"
        path, mark, options = (uri, "", "") if self.output.is_local else uri.partition("?")
        if not path.endswith(ending):
            raise ValueError(f"{uri} is not the folder of {self.address}")
        return Folder(f"{path.removesuffix(ending)}{mark}{options}")


@dataclass(frozen=True)
class Outcome:
    """What a stage reports of a finished step."""

    counts: Mapping[str, int] = field(default_factory=dict)  # rows read, kept, skipped and why
    metrics: Mapping[str, float] = field(default_factory=dict)  # summary numbers, at most some 30
    # Of work, without waiting, added up over the processes that did it; None: not measured.
    seconds: float | None = field(default=None, compare=False)

    def took(self, seconds: float) -> Outcome:
        """The same, with so many seconds of work more."""
        return replace(self, seconds=(self.seconds or 0.0) + seconds)


class LeaseHolder(Protocol):
    """Gives a driver's leases on names of its store: one writer at a time."""

    def acquire(self, address: str) -> bool:
        """Try to get a name's lease, without waiting."""

    def holds(self, address: str) -> bool:
        """Whether this driver still has it."""

    def release(self, address: str) -> None:
        """Give it back."""


@dataclass(frozen=True)
class Hooks:
    """How a stage reports while it runs. Every function may be called from any thread."""

    done: Callable[[str, Outcome | BaseException], None]  # address, result; once for each work
    say: Callable[[str, float, str], None]  # address, share done in [0, 1], a few words
    stopping: Callable[[], bool]  # true once the user asked to stop
    leases: LeaseHolder | None = None  # for what steps share; None: nobody else writes there
