"""`nml-orch corpus`: build only the corpora of an experiment, verify them, show their contents."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import (
    Chosen,
    Held,
    choose,
    finished,
    held_options,
    redo_option,
    task_options,
)
from orchestrator.run.waiting import waiting

if TYPE_CHECKING:
    from jobs.committed import Committed
    from jobs.corpus.preview import Preview
    from jobs.corpus.shards import Index
    from jobs.corpus.verify import Finding
    from jobs.storage.folder import Folder
    from orchestrator.step.step import Step
    from orchestrator.store.store import Store

CLASSES_SHOWN = 20
KEYS_SHOWN = 5


@click.group("corpus")
def command() -> None:
    """Build only the corpora of an experiment, verify them, or show their contents."""


@command.command(
    "build",
    epilog="""\b
Examples:
  nml-orch corpus build corpora/cifar10 --set corpus.reader.path=/data/cifar10_train.parquet
  nml-orch corpus build my.yaml --verify full      decode every image
  nml-orch corpus build my.yaml --shuffle none     keep the source's order
Exit status: 0 done, 1 a corpus failed, 2 a mistake in the command or the file.""",
)
@click.argument("file", required=False, metavar="[FILE]")
@click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change any field. Repeatable."
)
@click.option("--storage", metavar="FOLDER", help="Where to store it: a folder, s3:// or gs://.")
@task_options
@click.option(
    "--verify", type=click.Choice(["headers", "full"]), help="full: decode every image once."
)
@click.option(
    "--shuffle", type=click.Choice(["global", "none"]), help="none: keep the source's order."
)
@click.option("--force", is_flag=True, help="Rebuild what was built from other settings.")
@redo_option
def build(
    file: str | None,
    overrides: tuple[str, ...],
    storage: str | None,
    tasks_path: tuple[str, ...],
    data: str | None,
    verify: str | None,
    shuffle: str | None,
    force: bool,
    redo: tuple[str, ...],
) -> int:
    """Read the sources of the experiment and its tasks into shards. Continues a stopped build.

    --verify and --shuffle apply to the experiment's own corpus, not to those of its tasks.
    """
    from jobs.corpus.spec import Corpus
    from jobs.corpus.verify import compare_source
    from orchestrator.plan.states import StepState
    from orchestrator.run import sweep

    options = {"corpus.verify": verify, "corpus.shuffle": shuffle}
    overrides += tuple(f"{field}={value}" for field, value in options.items() if value is not None)
    with waiting("reading the experiment"):
        chosen = choose(
            file,
            overrides=overrides,
            storage=storage,
            tasks_path=tasks_path,
            data=data,
            sources=True,
        )
    plan = chosen.plan.only("corpus")
    results = sweep.build(plan, chosen.store, force=force, redo=plan.named(redo))
    bad = {a: r for a, r in results.items() if not r.state.finished}
    for step in plan.of_kind("corpus"):
        if step.address not in bad:
            click.echo(f"{step.address}: {_in_a_line(_index(chosen.store, step.address))}")
        if results[step.address].state is StepState.REUSED:
            assert isinstance(step.spec, Corpus)
            for finding in compare_source(step.spec, chosen.store.output(step.address)):
                click.echo(f"{step.address}: {finding.what} {finding.file}: {finding.detail}")
    for address, result in bad.items():
        click.echo(f"{result.state:8} {address}: {result.reason}")
    return 1 if bad else 0


@command.command(
    "verify",
    epilog="Exit status: 0 nothing has changed, 1 something has, 2 a mistake in the command.",
)
@held_options
def verify(chosen: Chosen | Held) -> int:
    """Check every shard, and whether the source files have changed.

    Shards are checked by their sha256, source files by name and size. Without FILE: the corpora of
    the store; only an experiment file says where their sources are.
    """
    from jobs.corpus.shards import INDEX
    from jobs.corpus.spec import Corpus
    from jobs.corpus.verify import compare_source
    from jobs.corpus.verify import verify as findings_in

    specs: dict[str, Corpus | None] = {}  # None: where its source is, is not known here
    if isinstance(chosen, Held):
        specs |= dict.fromkeys(chosen.addresses("corpus"))
    else:
        for step in finished(chosen, "corpus"):
            assert isinstance(step.spec, Corpus)
            specs[step.address] = step.spec
    wrong = 0
    for address, spec in specs.items():
        folder = chosen.store.output(address)
        found = [*findings_in(folder), *(compare_source(spec, folder) if spec else ())]
        if not any(finding.file == INDEX for finding in found):  # else the index says it itself
            found += _unrecorded(chosen.store.committed(address))
        for finding in found:
            click.echo(f"{address}: {finding.what} {finding.file}: {finding.detail}")
        faults = sum(not finding.harmless for finding in found)
        if any(finding.what in ("missing", "altered") for finding in found):
            how = f"`nml-orch corpus build` with the same options and --redo {address}"
            click.echo(f"{address}: {how} builds it again")
        wrong += faults
        if not faults:
            beside = "" if spec else "; its source was not looked at: name the experiment FILE"
            line = _in_a_line(_index(chosen.store, address))
            click.echo(f"{address}: as built, {line}{beside}")
    return 1 if wrong else 0


def _unrecorded(corpus: Committed) -> Iterator[Finding]:
    """Whether the index is the one that was written: the shards are compared with it."""
    from jobs.contract import StageError
    from jobs.corpus.shards import INDEX
    from jobs.corpus.verify import Finding

    try:
        corpus.check(INDEX)
    except StageError as error:
        yield Finding(INDEX, "altered", str(error))


@command.command("show")
@held_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(chosen: Chosen | Held, as_json: bool) -> None:
    """Show rows by part, classes, bytes, quarantined rows, some keys.

    Of a corpus that is not built yet: what its reader finds in the source. Without FILE: the
    corpora that the store holds.
    """
    done = chosen.addresses("corpus") if isinstance(chosen, Held) else _built(chosen)
    with _as_built():
        found = {address: _summary(chosen.store.committed(address)) for address in done}
    sources = (
        {}
        if isinstance(chosen, Held)
        else {step.address: source for step, source in previews(chosen, done)}
    )
    if as_json:
        click.echo(json.dumps(found | {a: _as_json(s) for a, s in sources.items()}, indent=2))
        return
    for address, summary in found.items():
        click.echo("\n".join(_lines(address, summary)))
    for address, source in sources.items():
        click.echo("\n".join(source_lines(address, source)))


def _built(chosen: Chosen) -> list[str]:
    """The corpora of an experiment that are built. Raises DriftError for other settings."""
    from orchestrator.plan.assess import assess, refuse_drift
    from orchestrator.plan.states import StepState

    assessed = assess(chosen.plan.only("corpus"), chosen.store)
    refuse_drift(assessed)
    return [a for a, found in assessed.items() if found.state is StepState.DONE]


def previews(
    chosen: Chosen, done: Container[str], *, tasks: bool = True, count: bool = True
) -> Iterator[tuple[Step, Preview | str]]:
    """What the readers of corpora that are not built find: the experiment's, and those of tasks.

    A source that cannot be read gives the reason. A task whose data is not here is left out.
    `count`: how many rows each class has, too.
    """
    from jobs.contract import StageError
    from jobs.corpus.preview import preview
    from jobs.corpus.spec import Corpus
    from jobs.tasks.check import absent
    from orchestrator.step.address import CorpusAddress

    own = chosen.experiment.corpus
    here = {str(CorpusAddress(task.scope)) for task in chosen.plan.tasks if not absent(task)}
    for step in chosen.plan.of_kind("corpus"):
        assert isinstance(step.spec, Corpus)
        is_own = own is not None and step.spec.name == own.name
        if step.address in done or not (is_own or (tasks and step.address in here)):
            continue
        try:
            yield step, preview(step.spec, count=count)
        except StageError as error:
            yield step, str(error)


def _as_json(source: Preview | str) -> dict[str, Any]:
    if isinstance(source, str):
        return {"built": False, "error": source}
    counts = source.counts
    classes = [
        {"id": c, "name": name, "rows": None if counts is None else counts.get(label, 0)}
        for label, (c, name) in enumerate(
            zip(source.classes.ids, source.classes.names, strict=True)
        )
    ]
    return {"built": False, "classes": classes, "first_rows": list(source.rows)}


def source_lines(address: str, source: Preview | str) -> Iterator[str]:
    """What a reader finds, for a corpus that is not built."""
    yield f"{address} is not built; its source:"
    if isinstance(source, str):
        yield f"  {source}"
        return
    yield f"  {'classes':12}{source.classes_in_words()}"
    ids = source.classes.ids
    for label, identity in enumerate(ids[:CLASSES_SHOWN] if source.counts is not None else ()):
        assert source.counts is not None
        yield f"  {'class':12}{source.counts.get(label, 0):>12,} rows  {identity}"
    if len(ids) > CLASSES_SHOWN:
        yield f"  {'':12}... and {len(ids) - CLASSES_SHOWN:,} more classes; --json lists them"
    for row in source.rows or (source.why_none,):
        yield f"  {'row':12}{row}"


def _index(store: Store, address: str) -> Index:
    from jobs.corpus.shards import Index

    with _as_built():
        return Index.read(store.committed(address))


@contextmanager
def _as_built() -> Iterator[None]:
    """Raise UserError when a corpus is damaged or incomplete."""
    from jobs.contract import StageError
    from orchestrator.errors import UserError

    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or error} is missing; build the corpus again (--redo)"
        ) from error
    except StageError as error:
        raise UserError(str(error)) from error


def _in_a_line(index: Index) -> str:
    from jobs.corpus.shards import PARTS

    parts = ", ".join(f"{index.rows(part):,} {part}" for part in PARTS)
    files = [file for part in PARTS for file in index.parts[part]]
    size = sum(file.bytes for file in files) / 1e6
    bad = sum(index.quarantined.values())
    shrunk = "" if index.shrunk is None else f" ({_shrunk_in_words(**asdict(index.shrunk))})"
    return f"{parts}; {len(files)} shards, {size:,.1f} MB{shrunk}; {bad:,} rows in quarantine"


def _shrunk_in_words(images: int, bytes_before: int, bytes_after: int) -> str:
    before, after = bytes_before / 1e6, bytes_after / 1e6
    return f"{images:,} images shrunk from {before:,.1f} MB to {after:,.1f} MB"


def _summary(folder: Folder) -> dict[str, Any]:
    """What `show` prints about one corpus, as JSON values."""
    from jobs.corpus.shards import PARTS, Index, read_part, read_rows

    index = Index.read(folder)
    labels = read_part(folder, "train", ["label"])["label"].drop_null()
    counts = {c["values"].as_py(): c["counts"].as_py() for c in labels.value_counts()}
    first = next(files[0] for files in index.parts.values() if files)
    keys = read_rows(folder, first.file, 0, min(KEYS_SHOWN, first.rows), ["key"])["key"]
    return {
        "place": folder.uri,
        "parts": {
            part: {
                "rows": index.rows(part),
                "shards": len(index.parts[part]),
                "bytes": sum(file.bytes for file in index.parts[part]),
            }
            for part in PARTS
        },
        "rows_read": index.rows_read,
        "quarantined": dict(index.quarantined),
        "notes": dict(index.notes),
        "shrunk": None if index.shrunk is None else asdict(index.shrunk),
        "classes": [
            {"id": identity, "name": name, "train_rows": counts.get(label, 0)}
            for label, (identity, name) in enumerate(
                zip(index.class_ids, index.classes, strict=True)
            )
        ],
        "keys": keys.to_pylist(),
    }


def _lines(address: str, summary: dict[str, Any]) -> Iterator[str]:
    yield f"{address} in {summary['place']}"
    for part, sizes in summary["parts"].items():
        size = sizes["bytes"] / 1e6
        yield f"  {part:12}{sizes['rows']:>12,} rows{sizes['shards']:>8,} shards{size:>12,.1f} MB"
    for title, counts in (("quarantine", summary["quarantined"]), ("notes", summary["notes"])):
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
        yield f"  {title:12}{listed}"
    if summary["shrunk"] is not None:
        yield f"  {'shrunk':12}{_shrunk_in_words(**summary['shrunk'])}"
    classes = summary["classes"]
    for entry in classes[:CLASSES_SHOWN]:
        named = "" if entry["id"] == entry["name"] else f"  ({entry['id']})"
        yield f"  {'class':12}{entry['train_rows']:>12,} rows  {entry['name']}{named}"
    if len(classes) > CLASSES_SHOWN:
        yield f"  {'':12}... and {len(classes) - CLASSES_SHOWN:,} more classes; --json lists them"
    yield f"  {'keys':12}{', '.join(summary['keys'])}, ..."
