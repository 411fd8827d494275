"""Checks task files: are they complete, and do they fit their ID task and their data?

Takes tasks; gives faults, one sentence each, none if all is well. A file is checked alone
(`faults`), then against the ID task (`link_faults`), then against the data (`data_faults`). The
last reads names, headers, label columns and a few samples, never all images of a source. Missing
data is not a fault: `absent` gives its paths. Nothing here trains or writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.contract import StageError
from jobs.corpus.reader_spec import (
    AnyReader,
    DigitsReader,
    ImageFolderReader,
    ParquetReader,
    RemarksReader,
    TableReader,
    TextReader,
)
from jobs.corpus.spec import Corpus
from jobs.images.spec import MOST_PIXELS
from jobs.tasks.spec import Classes, Task, other_of_number, shared_name
from jobs.validation import first_names

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLED = 8  # samples checked of each source: images are decoded


def sources(task: Task) -> dict[str, AnyReader]:
    """The readers of a task's corpus: `reader`, and those of parts with their own."""
    if task.corpus is None:
        return {}
    return {"reader": task.corpus.reader, **task.corpus.parts.sources}


# -- the file alone --------------------------------------------------------------------------------


def faults(task: Task) -> Iterator[str]:
    """What is missing or inconsistent in a task's file."""
    facts = task.facts
    if facts is None:  # a user's own file: `found` says what its data has
        return
    if task.corpus is not None:
        for name in sorted(set(sources(task)) ^ set(facts.sizes)):
            verb = "lack" if name in sources(task) else "name"
            readers = ", ".join(sources(task))
            yield f"facts.sizes {verb} {name}; give the rows of each reader: {readers}"
    elif "test" not in facts.sizes or (task.domain == "id" and "train" not in facts.sizes):
        yield "facts.sizes lack the rows of a part; give train and test"
    if (facts.classes > 0) != task.target_kind.has_classes:
        yield f"facts.classes is {facts.classes}, but the target is a {task.target}; correct one"
    for name, member in _members(task):
        if isinstance(member, int) and not 0 <= member < facts.classes:
            yield (
                f"classes.{name} names label {member} of {facts.classes} classes (from 0); correct "
                f"it, or facts.classes"
            )
        known = not facts.class_names or task.spells_labels or member in facts.class_names
        if isinstance(member, str) and not known:
            yield f"classes.{name} names {member!r}, which facts.class_names lack; correct one"


def class_names(task: Task) -> tuple[str, ...]:
    """The task's classes, in order, if its file names them; else empty."""
    if task.classes is not None:
        return tuple(task.classes)
    return task.facts.class_names if task.facts else ()


def _names(task: Task) -> tuple[str, ...]:
    """The same; where the file names none and has no facts, those of its data, if it is here."""
    named = class_names(task)
    if named or task.facts is not None or task.corpus is None or absent(task):
        return named
    from jobs.corpus.readers import reader_of

    try:
        return tuple(reader_of(task.corpus.reader).classes().names)
    except StageError:
        return ()  # `data_faults` says why


def _members(task: Task) -> Iterator[tuple[str, int | str]]:
    for name, members in (task.classes or {}).items():
        for member in members:
            yield name, member


# -- against the task it is trained on -------------------------------------------------------------


def link_faults(task: Task, tasks: Mapping[str, Task]) -> Iterator[str]:
    """What prevents testing an OOD task with the heads of its ID task."""
    if task.trained_on is None:
        return
    source = tasks.get(task.trained_on)
    if source is None or source.domain != "id":
        found = "not a task" if source is None else "an OOD task"
        yield f"trained_on: {task.trained_on} is {found}; name an ID task"
        return
    if task.target != source.target or len({task.source, source.source} - {"features"}) > 1:
        yield (
            f"trained_on: {source.name} predicts a {source.target} from {source.source}, and this "
            f"task a {task.target} from {task.source}; name an ID task like this one"
        )
    if task.upsampling != source.upsampling:
        yield (
            f"upsampling: {task.upsampling}, but {source.name} has {source.upsampling}, and their "
            f"scores are compared; give both the same"
        )
    if not task.target_kind.has_classes:
        return  # there are no classes to map
    if task.corpus == source.corpus and task.classes == source.classes and task.answers is None:
        return  # the same images, perhaps shifted, have the same classes
    own, outputs = _names(task), _names(source)
    if not own or not outputs:
        nameless = task if not own else source
        if nameless.facts is not None or not absent(nameless):
            yield f"the file of {nameless.name} does not name its classes: give facts.class_names"
        return
    if task.answers is not None and set(task.answers) != set(own):
        yield f"answers are for other classes than the task's; give them for {first_names(own)}"
    wanted = [n for names in task.answers.values() for n in names] if task.answers else list(own)
    unknown = [name for name in wanted if name not in outputs]
    if unknown:
        remedy = "correct answers" if task.answers else "give answers"
        yield (
            f"{source.name} has no class {unknown[0]!r} ({len(unknown)} such); {remedy}: it has "
            f"{first_names(outputs)}"
        )


# -- against the data ------------------------------------------------------------------------------


def absent(task: Task) -> list[str]:
    """The local paths of a task's readers that do not exist; remote paths are not checked."""
    return [
        path
        for path in dict.fromkeys(task.paths())
        if "://" not in path and not Path(path).exists()
    ]


def data_faults(task: Task) -> Iterator[str]:
    """Where the data differs from the task's file: rows, classes, labels, samples."""
    import pyarrow as pa

    for name, spec in sources(task).items():
        try:
            yield from _source_faults(task, name, spec)
        except StageError as error:
            yield f"{name}: {error}"
        except (KeyError, ValueError, OSError, pa.ArrowException) as error:  # column or file errors
            yield f"{name}: cannot be read ({' '.join(str(error).split())})"


def found(task: Task) -> Iterator[str]:
    """What the data of a task has: rows, classes and first rows of each source, a sentence each.

    For a file without facts, with which the data cannot be compared. A source that cannot be read
    gives none: `data_faults` says why.
    """
    from jobs.corpus.preview import preview

    for name, spec in sources(task).items():
        assert task.corpus is not None, "only a corpus has sources"
        try:
            seen = preview(task.corpus.model_copy(update={"reader": spec}))
        except StageError:
            continue
        rows = _count_rows(spec) if seen.counts is None else sum(seen.counts.values())
        counted = "" if rows is None else f"{rows:,} rows; "
        yield f"{name}: {counted}{seen.in_a_line()}"


def _source_faults(task: Task, name: str, spec: AnyReader) -> Iterator[str]:
    from jobs.corpus.readers import reader_of
    from jobs.corpus.readers.rows import why_no_rows

    facts = task.facts
    reader = reader_of(spec)
    names = reader.classes().names
    if name == "reader":
        yield from _class_faults(task, names)
    rows = _count_rows(spec)
    stated = next((n for key, n in facts.sizes.items() if key == name), None) if facts else None
    if rows is not None and stated is not None and rows != stated:
        yield f"{name}: {rows:,} rows, but facts.sizes say {stated:,}; correct one of them"
    seen, most = 0, task.corpus.max_pixels if task.corpus else MOST_PIXELS
    for table in islice((t for unit in reader.units() for t in reader.read(unit, Counter())), 1):
        if task.target_kind.dense and task.corpus is not None:
            yield from _mask_faults(task.corpus, name, spec, table.slice(0, SAMPLED), len(names))
        for row in table.slice(0, SAMPLED).to_pylist():
            seen += 1
            fault = row["fault"]
            if fault is None and task.modality == "image":
                fault = _decode_error(row["image"], most)
            if fault:
                yield f"{name}: {row['key']}: {fault}"
            if task.target_kind.dense or not task.target_kind.has_classes:
                continue
            if row["label"] is None or not 0 <= row["label"] < len(names):
                yield f"{name}: {row['key']}: label {row['label']} of {len(names)} classes"
    if not seen:
        yield f"{name}: {why_no_rows(spec)}"


def _mask_faults(
    corpus: Corpus, name: str, spec: AnyReader, rows: pa.Table, classes: int
) -> Iterator[str]:
    """Where a mask does not fit its image or has a number of no class."""
    from jobs.corpus.check import Rules, check, mask_numbers

    numbers = mask_numbers(corpus, spec, range(classes))
    rules = Rules(corpus.form, False, classes, None, False, corpus.max_pixels, False, numbers)
    for row in check(rows, rules).bad.to_pylist():
        yield f"{name}: {row['key']}: {row['reason']}"


def _class_faults(task: Task, names: Sequence[str]) -> Iterator[str]:
    facts = task.facts
    if facts is not None and len(names) != facts.classes:
        yield f"{len(names)} classes, but facts.classes say {facts.classes}; correct one of them"
    if facts is not None and facts.class_names and set(facts.class_names) != set(names):
        unmatched = sorted(set(facts.class_names) ^ set(names))
        yield (
            f"class {unmatched[0]!r} is in only one of the data and facts.class_names "
            f"({len(unmatched)} such); correct one of them"
        )
    yield from map_faults(task, names)


def map_faults(task: Task, names: Sequence[str]) -> Iterator[str]:
    """Where a task's `classes` do not fit the class names of its data, in label order."""
    taken: dict[int, tuple[str, int | str]] = {}
    if task.spells_labels and task.classes:
        yield from _spelling_faults(task.classes, names)
        return
    for name, member in _members(task):
        known = member in names if isinstance(member, str) else 0 <= member < len(names)
        if not known:
            yield (
                f"classes.{name} names {member!r}, which the data lacks; use one of "
                f"{first_names(names)}"
            )
            continue
        if isinstance(member, str) and (fault := shared_name(member, names)) is not None:
            yield f"classes.{name} names {fault}"
        if isinstance(member, int) and (other := other_of_number(member, names)) is not None:
            yield f"classes.{name} names {other}"
        label = names.index(member) if isinstance(member, str) else member
        first = taken.setdefault(label, (name, member))
        if first != (name, member):
            yield (
                f"classes.{name} names {member!r}, which classes.{first[0]} names as {first[1]!r}; "
                f"keep it in one of them"
            )


def _spelling_faults(classes: Classes, names: Sequence[str]) -> Iterator[str]:
    """The classes of a task of texts that its data has not, and labels that are none of them."""
    members = {member for found in classes.values() for member in found}
    for name, found in classes.items():
        if not set(found) & set(names):
            yield (
                f"no label of the data ({first_names(names)}) is a name of class {name}; add the "
                f"name that the data has"
            )
    for label in names:
        if label not in members:
            yield (
                f"no class of the task has the name {label!r}, which the data has; add it to a "
                f"class, or leave such rows out of the source"
            )


def _decode_error(image: bytes | None, max_pixels: int) -> str | None:
    from jobs.images.decode import open_image

    try:
        open_image(image or b"", max_pixels)
    except Exception as error:  # a decoder may raise anything on damaged bytes
        return f"cannot be decoded ({error})"
    return None


def _count_rows(spec: AnyReader) -> int | None:
    """How many rows a source has, if they can be counted without reading images; else None."""
    from jobs.corpus.readers import reader_of
    from jobs.corpus.readers.parquet import Parquet
    from jobs.corpus.readers.texts import Texts

    match spec:
        case DigitsReader() | RemarksReader():
            return spec.rows
        case ImageFolderReader():
            return sum(1 for _ in reader_of(spec).files())
        case TableReader():
            return max((unit.stop for unit in reader_of(spec).units()), default=0)
        case TextReader():
            reader = reader_of(spec)
            assert isinstance(reader, Texts)
            return reader.rows()
        case ParquetReader():
            return Parquet(spec).rows()
        case _:
            return None
