"""What an extension offers, read from its text without running it.

Takes an extension; gives its parts. A part is known by its form:

    a method    a class with `forward`, and `loss` or `prepare` or both
    an encoder  a function that takes `image` or `text` first, then its options
    a noise     a function that takes `keys` and `seed`
    a claim     a function that takes `results`

A name that begins with an underscore is a part of none of these.

So `plan`, `status` and `report` check a file, and run nothing of it.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeGuard

from jobs.contract import StageError
from jobs.extensions.spec import Extension, Part

Kind = Literal["method", "encoder", "noise", "claim"]
RANGES = "hyperparameters"
"""The class attribute that declares a method's hyper-parameters."""
IMAGE, TEXT = "image", "text"
INPUTS = (IMAGE, TEXT)
"""The first argument of an encoder's function."""
ENCODER = "encoder"
"""The argument of the `loss` of a method that trains the encoder."""

_Function: TypeAlias = ast.FunctionDef


@dataclass(frozen=True)
class Range:
    """The values that a hyper-parameter may have."""

    low: float | None  # None: no limit
    high: float | None
    default: float | None = None  # None: the experiment must give it
    whole: bool = False  # whole numbers alone

    def __str__(self) -> str:
        if self.low is None and self.high is None:
            return "any number"
        ends = [f"at least {self.low:g}"] if self.low is not None else []
        ends += [f"at most {self.high:g}"] if self.high is not None else []
        return " and ".join(ends)


@dataclass(frozen=True)
class Declared:
    """A part as its file declares it."""

    kind: Kind
    name: str
    line: int
    summary: str  # the docstring's first line; empty: none
    arguments: tuple[str, ...] = ()  # of a function; of a method: of its loss
    required: tuple[str, ...] = ()  # those of them without a default
    takes_any: bool = False  # a function that takes options of any name (**options)
    ranges: Mapping[str, Range] = field(default_factory=dict)  # of a method
    trained: bool = False  # a method with a loss; else `prepare` solves it

    @property
    def trains_encoder(self) -> bool:
        """Whether it is a method whose loss takes the encoder."""
        return self.kind == "method" and ENCODER in self.arguments


def parts(extension: Extension) -> dict[str, Declared]:
    """Every part of an extension, by name.

    Raises StageError where its text is no Python, and where a part's name is defined twice.
    """
    try:
        tree = ast.parse(extension.text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        what = getattr(error, "msg", None) or str(error)
        raise StageError(f"{extension.file}, line {line}: {what}; correct the file") from None
    except (RecursionError, MemoryError):  # Python's own answers to deep nesting
        raise StageError(f"{extension.file} is nested too deeply; write it in parts") from None
    defined = [node for node in tree.body if isinstance(node, (ast.ClassDef, _Function))]
    classes = {node.name: node for node in defined if isinstance(node, ast.ClassDef)}
    found: dict[str, Declared] = {}
    for node in defined:
        one = (
            _method(extension, node, classes) if isinstance(node, ast.ClassDef) else _function(node)
        )
        if one is not None:
            found[one.name] = one
    for name in found:
        lines = [node.lineno for node in defined if node.name == name]
        if len(lines) > 1:
            raise StageError(
                f"{extension.file} defines {name} in lines {lines[0]} and {lines[1]}; rename one "
                f"of them"
            )
    return found


def part(part: Part, kind: Kind) -> Declared:
    """The declaration of one part. Raises StageError, with the nearest name, if there is none."""
    known = {name: one for name, one in parts(part.extension).items() if one.kind == kind}
    if part.name not in known:
        near = difflib.get_close_matches(part.name, known, n=1)
        listed = f"it has {', '.join(known)}" if known else f"it has no {kind}"
        hint = f"did you mean {near[0]}?" if near else listed
        raise StageError(f"{part.extension.file} has no {kind} {part.name}; {hint}")
    return known[part.name]


def _function(node: ast.FunctionDef) -> Declared | None:
    own, arguments = node.args, _arguments(node)
    plain = [a.arg for a in (*own.posonlyargs, *own.args)]
    required = plain[: len(plain) - len(own.defaults)]
    required += [a.arg for a, d in zip(own.kwonlyargs, own.kw_defaults, strict=True) if d is None]
    kind: Kind | None = None
    if {"keys", "seed"} <= {*arguments}:
        kind = "noise"
    elif "results" in arguments:
        kind = "claim"
    elif plain and plain[0] in INPUTS:
        kind = "encoder"
    if kind is None or node.name.startswith("_"):
        return None
    takes_any = own.kwarg is not None
    summary = _summary(node)
    return Declared(kind, node.name, node.lineno, summary, arguments, tuple(required), takes_any)


def _method(
    extension: Extension, node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]
) -> Declared | None:
    body = list(_body(node, classes))
    defined = {item.name for item in body if isinstance(item, _Function)}
    if "forward" not in defined or not defined & {"loss", "prepare"} or node.name.startswith("_"):
        return None
    ranges: dict[str, Range] = {}
    for item in body:
        target = item.targets[0] if isinstance(item, ast.Assign) else None
        target = item.target if isinstance(item, ast.AnnAssign) else target
        if isinstance(target, ast.Name) and target.id == RANGES:
            value = item.value if isinstance(item, (ast.Assign, ast.AnnAssign)) else None
            ranges = _ranges(extension, node.name, value, item.lineno)
    return Declared(
        "method",
        node.name,
        node.lineno,
        _summary(node),
        next((_arguments(item) for item in reversed(body) if _is_loss(item)), ()),
        ranges=ranges,
        trained="loss" in defined,
    )


def _is_loss(item: ast.stmt) -> TypeGuard[ast.FunctionDef]:
    return isinstance(item, _Function) and item.name == "loss"


def _arguments(node: ast.FunctionDef) -> tuple[str, ...]:
    own = node.args
    return tuple(a.arg for a in (*own.posonlyargs, *own.args, *own.kwonlyargs))


def _body(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.stmt]:
    """The statements of a class and of its bases above it in the file; what comes last counts."""
    for base in reversed(node.bases):
        known = classes.get(base.id) if isinstance(base, ast.Name) else None
        if known is not None and known.lineno < node.lineno:
            yield from _body(known, classes)
    yield from node.body


def _ranges(extension: Extension, name: str, value: ast.expr | None, line: int) -> dict[str, Range]:
    where = f"{extension.file}, line {line}: {RANGES} of {name}"
    try:
        found = ast.literal_eval(value) if value is not None else {}
        ranges = {each: _range(limits) for each, limits in found.items()}
        if isinstance(value, ast.Dict) and len(value.keys) > len(ranges):
            raise _RangeError("a name is given twice")
        if not_text := [each for each in ranges if not isinstance(each, str)]:
            raise _RangeError(f"{not_text[0]!r} is no name")
        return ranges
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, _RangeError) else "it is written in other words"
        raise StageError(
            f"{where} maps each name to (least, greatest) or (least, greatest, default), in "
            f"numbers or None: {reason}"
        ) from None


class _RangeError(ValueError):
    """Limits that make no range."""


def _range(limits: object) -> Range:
    if not isinstance(limits, (tuple, list)) or len(limits) not in (2, 3):
        raise _RangeError(f"{limits!r} is no range")
    numbers = [value for value in limits if value is not None]
    if any(type(value) not in (int, float) for value in numbers):
        raise _RangeError(f"{limits!r} is no range of numbers")
    low, high, default = (*limits, None)[:3]
    if low is not None and high is not None and low > high:
        raise _RangeError(f"{limits!r} ends before it begins")
    if default is not None and not (
        (low is None or low <= default) and (high is None or default <= high)
    ):
        raise _RangeError(f"{default!r} is outside {limits[:2]!r}")
    whole = bool(numbers) and all(type(value) is int for value in numbers)
    return Range(low, high, default, whole)


def _summary(node: ast.ClassDef | ast.FunctionDef) -> str:
    lines = (ast.get_docstring(node) or "").strip().splitlines()
    return lines[0] if lines else ""
