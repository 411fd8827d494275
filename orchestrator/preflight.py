"""What a sweep needs, asked in one place: by `doctor`, `plan` and `sweep`, before Ray starts.

Takes a plan and the steps that are left of it; gives answers, one sentence each. A question takes
seconds: it reads names, headers, schemas and first rows, never all samples. What takes longer is
left to the step itself, and the answer says so. Nothing here runs a step, and only `storage` with
`write` writes (an empty file, which it removes).
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from jobs.contract import StageError
from jobs.corpus.reader_spec import DigitsReader, RemarksReader
from jobs.corpus.spec import Corpus
from jobs.encoders.spec import (
    EncoderStep,
    FileEncoder,
    OwnEncoder,
    OwnTextEncoder,
    TransformersEncoder,
)
from jobs.features.spec import GivenStep
from jobs.storage.folder import Folder
from jobs.tasks.check import absent, map_faults
from jobs.tasks.spec import Task
from orchestrator.errors import NmlError, UserError
from orchestrator.plan.plan import Plan
from orchestrator.step.address import CorpusAddress
from orchestrator.step.step import Step
from orchestrator.store.provenance import PACKAGES, redact, versions
from orchestrator.store.store import Store

LOW_DISK_GB = 5
SECONDS = 10.0  # that a source is looked at
UI_PORT = 5000


class State(StrEnum):
    """What an answer means for a sweep."""

    OK = "ok"
    ABSENT = "absent"  # not on this machine: a plan can be made without it
    FAULT = "fault"


@dataclass(frozen=True)
class Answer:
    """One question's answer: what was found, or what is wrong and what to do."""

    question: str
    state: State
    message: str


def ask(plan: Plan, store: Store, left: Collection[str], *, write: bool) -> Iterator[Answer]:
    """All answers. With `write`, the storage is tried by writing."""
    yield _versions()
    yield Answer("experiment", State.OK, f"{plan.experiment.name}: {len(plan.steps)} steps planned")
    yield from inputs(plan, left)
    yield _storage(store, write)
    yield _disk(store)
    yield _tracking(plan)
    yield _port()


def inputs(plan: Plan, left: Collection[str]) -> Iterator[Answer]:
    """The answers on what the steps that are left read: data, corpora, encoders, buckets."""
    yield from _data(plan, left)
    yield from _buckets(plan, left)
    yield from _encoders(plan, left)
    yield from _corpora(plan, left)


def refuse(plan: Plan, left: Collection[str]) -> None:
    """Raise UserError with the first thing that a step would lack, before anything starts."""
    for answer in inputs(plan, left):
        if answer.state is not State.OK:
            raise UserError(answer.message)


# -- this machine ----------------------------------------------------------------------------------


def _versions() -> Answer:
    found = versions()
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        listed = ", ".join(missing)
        message = f"not installed: {listed}; run pip install -e . again"
        return Answer("versions", State.FAULT, message)
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return Answer("versions", State.OK, listed)


def _storage(store: Store, write: bool) -> Answer:
    uri = redact(store.root.uri)
    try:
        if write or not store.root.is_local:
            store.prepare() if write else store.root.open()
            return Answer("storage", State.OK, f"{uri} can be {'written' if write else 'reached'}")
    except (NmlError, OSError, ValueError) as error:
        return Answer("storage", State.FAULT, str(error))
    folder = _existing(store.root.local_path())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Answer("storage", State.OK, f"{uri} can be written")
    message = f"storage {uri} cannot be written; name a folder you may write to with --storage"
    return Answer("storage", State.FAULT, message)


def _disk(store: Store) -> Answer:
    if not store.root.is_local:
        return Answer("disk", State.OK, "not a local disk")
    folder = _existing(store.root.local_path())
    free = shutil.disk_usage(folder).free / 1e9
    if free < LOW_DISK_GB:
        message = f"{free:.1f} GB free at {folder}; free some, or use --storage elsewhere"
        return Answer("disk", State.FAULT, message)
    return Answer("disk", State.OK, f"{free:.0f} GB free at {folder}")


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _tracking(plan: Plan) -> Answer:
    from orchestrator.tracking import sqlite
    from orchestrator.tracking.server import check_answers, named, other, resolve_uri

    if not plan.experiment.tracking.enabled:
        return Answer("tracking", State.OK, "switched off in the experiment file")
    uri = resolve_uri(plan.experiment.tracking.uri)
    path = sqlite.path_of(uri)
    if path is not None and not path.exists():
        return Answer("tracking", State.OK, f"{uri} (the first sweep creates it)")
    try:
        check_answers(uri)
    except (OSError, ModuleNotFoundError) as error:
        what, remedy = f"MLflow at {named(uri)} does not answer", "start it"
        if isinstance(error, ModuleNotFoundError):
            what, remedy = f"MLflow cannot open {named(uri)} here", "install that driver"
        elsewhere = other(plan.experiment.tracking.uri)
        message = f"{what} ({redact(str(error))}); {remedy}, or {elsewhere}"
        return Answer("tracking", State.ABSENT, message)
    return Answer("tracking", State.OK, f"{redact(uri)} answers")


def _port() -> Answer:
    from orchestrator.tracking import port

    if port.is_free(UI_PORT):
        return Answer("ports", State.OK, f"{UI_PORT} is free for `nml-orch ui`")
    message = f"{UI_PORT} is taken by {port.owner(UI_PORT)}; `nml-orch ui` takes the next free one"
    return Answer("ports", State.OK, message)


# -- what the steps read ---------------------------------------------------------------------------


def _data(plan: Plan, left: Collection[str]) -> Iterator[Answer]:
    """The tasks whose data is not here, in one answer that says where to get it."""
    missing: dict[str, tuple[list[str], Task]] = {
        task.name: (paths, task)
        for task in plan.tasks
        if str(CorpusAddress(task.scope)) in left and (paths := absent(task))
    }
    if not missing:
        return
    name, (paths, task) = next(iter(missing.items()))
    how = f": {task.facts.get}" if task.facts else ""
    others = f" (also missing: {', '.join(list(missing)[1:])})" if len(missing) > 1 else ""
    yield Answer(
        "data",
        State.ABSENT,
        f"tasks: the data of {name} is not at {paths[0]}{others}; get it{how}; or give its folder "
        f"with --data FOLDER or $NML_DATA, or remove the task",
    )


def _buckets(plan: Plan, left: Collection[str]) -> Iterator[Answer]:
    """The buckets that a step reads and where nothing answers: a worker would wait."""
    for kind in ("corpus", "noise", "encoder", "features"):
        for step in plan.of_kind(kind):
            for uri in _bucket_uris(step):
                if step.address in left and (fault := _unreachable(uri)):
                    message = (
                        f"{step.address} reads {redact(uri)}, where nothing answers ({fault}); "
                        f"correct that address, or start its server"
                    )
                    yield Answer("buckets", State.ABSENT, message)


def _unreachable(uri: str) -> str:
    try:
        Folder.of(uri).open()
    except ValueError:
        return ""  # no address at all: the stage says what is wrong
    except OSError as error:
        return str(error)
    return ""


def _bucket_uris(step: Step) -> Iterator[str]:
    """Every s3:// or gs:// URI in a step's settings."""

    def within(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            if value.startswith(("s3://", "gs://", "gcs://")):
                yield value
        elif isinstance(value, Mapping):
            for each in value.values():
                yield from within(each)
        elif isinstance(value, list):
            for each in value:
                yield from within(each)

    return within(step.spec.model_dump(mode="json"))


def _encoders(plan: Plan, left: Collection[str]) -> Iterator[Answer]:
    """The files of pretrained encoders, and the columns of given features."""
    for step in plan.steps.values():
        if step.address not in left:
            continue
        spec = step.spec
        if isinstance(spec, GivenStep):
            yield _given(step, spec)
        elif isinstance(spec, EncoderStep):
            yield _weights(step, spec)


def _weights(step: Step, spec: EncoderStep) -> Answer:
    if isinstance(spec.encoder, TransformersEncoder) and spec.encoder.revision is None:
        return _text_model(step, spec.encoder)
    match encoder := spec.encoder:
        case FileEncoder() | OwnEncoder() | OwnTextEncoder() if encoder.file is not None:
            path = encoder.file
        case OwnEncoder() | OwnTextEncoder():
            return Answer("encoders", State.OK, f"{step.address}: {encoder.model} builds it")
        case _:
            where = "its library gets the weights when the step runs"
            return Answer("encoders", State.OK, f"{step.address}: {encoder.model}; {where}")
    return _at(step, path) or Answer("encoders", State.OK, f"{step.address}: {path} is here")


def _at(step: Step, path: str) -> Answer | None:
    """The answer that a file or a folder is not here; None if it is."""
    folder, name = Folder.holding(Folder.of(path).uri)
    try:
        if folder.exists(name):
            return None
    except (OSError, ValueError):
        return None  # a bucket without an answer is another question's
    message = f"{step.address} reads {path}, which does not exist here; put it there"
    return Answer("encoders", State.ABSENT, message)


def _text_model(step: Step, encoder: TransformersEncoder) -> Answer:
    """A folder with a text model: whether it has the layers and positions that are asked for."""
    from jobs.encoders.model_folder import Limits, ModelFolder, locate

    try:
        folder = locate(encoder.model)
        if absent := _at(step, folder.uri):
            return absent
        limits = Limits.of(ModelFolder.read(folder).config)
        limits.check(encoder.model, encoder.layer, encoder.max_length)
    except StageError as error:
        return Answer("encoders", State.FAULT, f"{step.address}: {error}")
    except OSError:
        pass  # a bucket without an answer is another question's
    return Answer("encoders", State.OK, f"{step.address}: {encoder.model} is here")


def _given(step: Step, spec: GivenStep) -> Answer:
    from jobs.features.columns import check_file

    try:
        check_file(spec)
    except FileNotFoundError:
        message = f"{step.address} reads {spec.file}, which does not exist here; put it there"
        return Answer("encoders", State.ABSENT, message)
    except (StageError, OSError) as error:
        return Answer("encoders", State.FAULT, f"{step.address}: {error}")
    return Answer("encoders", State.OK, f"{step.address}: {spec.file} has the columns")


def _corpora(plan: Plan, left: Collection[str]) -> Iterator[Answer]:
    """What the readers of corpora find that are not built: the experiment's, and those of tasks."""
    own = plan.experiment.corpus
    here = {str(CorpusAddress(task.scope)) for task in plan.tasks if not absent(task)}
    for step in plan.of_kind("corpus"):
        spec = step.spec
        if step.address not in left or not isinstance(spec, Corpus):
            continue
        is_own = own is not None and spec.name == own.name
        packaged = isinstance(spec.reader, (DigitsReader, RemarksReader))
        if packaged or not (is_own or step.address in here):
            continue
        readers = [task for task in plan.tasks if str(CorpusAddress(task.scope)) == step.address]
        yield _source(step.address, spec, readers)


def _source(address: str, spec: Corpus, tasks: Sequence[Task]) -> Answer:
    """What the readers of a corpus find, and whether it has the classes that its tasks name."""
    from jobs.corpus.preview import is_quick, preview

    for part, reader in (("reader", spec.reader), *spec.parts.sources.items()):
        source = spec.model_copy(update={"reader": reader})
        path = getattr(source.with_absolute_paths().reader, "path", "")
        if not is_quick(source):
            return Answer("corpus", State.OK, f"{address}: looked at when it is built ({path})")
        try:
            seen = _within(SECONDS, lambda source=source: preview(source))  # type: ignore[misc]
        except StageError as error:
            gone = bool(path) and "://" not in path and not Path(path).exists()
            return Answer("corpus", State.ABSENT if gone else State.FAULT, str(error))
        if seen is None:
            return Answer("corpus", State.OK, f"{address}: large; looked at when it is built")
        if part == "reader":
            found = seen
    for task in tasks:
        for fault in map_faults(task, found.classes.names):
            return Answer("corpus", State.FAULT, f"the file of task {task.name}: {fault}")
    line = f"{address}: {found.in_a_line()}"
    if found.without_rows and not spec.allow_empty_classes:
        return Answer("corpus", State.FAULT, line)
    return Answer("corpus", State.OK, line)


def _within(seconds: float, read: Callable[[], Any]) -> Any:
    """What a function gives, or None if it takes longer; its thread then ends by itself."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(read())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="preflight", daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    return result[0] if result else None
