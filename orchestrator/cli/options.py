"""Arguments that several commands share: which experiment, and what to change in it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from orchestrator.run.waiting import waiting

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment
    from orchestrator.plan.plan import Plan
    from orchestrator.step.step import Step
    from orchestrator.store.store import Store


@dataclass(frozen=True)
class Chosen:
    """The experiment that the command line named."""

    experiment: Experiment
    plan: Plan
    store: Store


def task_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --tasks-path and --data: the folders of task files and of their data."""
    folders = click.option(
        "--tasks-path",
        multiple=True,
        metavar="FOLDER",
        help="A folder of more task files. Repeatable.",
    )
    data = click.option(
        "--data",
        metavar="FOLDER",
        help="Where paths in task files start (else $NML_DATA, else the current folder).",
    )
    return folders(data(function))


@dataclass(frozen=True)
class Held:
    """A store, where the command line named no experiment: what it holds is meant."""

    store: Store

    def addresses(self, kind: str) -> list[str]:
        """The finished steps of a kind. Raises UserError when there is none."""
        from orchestrator.errors import UserError

        found = self.store.held(kind)
        if not found:
            raise UserError(
                f"{self.store.root.uri} has no {kind} step; run `nml-orch {kind} build` first, or "
                f"name an experiment FILE"
            )
        return found


@dataclass(frozen=True)
class Two:
    """Two sweeps that the command line named, each by a store or an experiment."""

    names: tuple[str, str]
    storage: str | None
    task_folders: tuple[str, ...]
    data: str | None


def experiment_options(
    function: Callable[..., Any],
    *,
    last: bool = False,
    sources: bool = False,
    held: bool = False,
    two: bool = False,
) -> Callable[..., Any]:
    """Add FILE and the options that change it. The command gets a `Chosen` as its first argument.

    Without FILE the experiment is the demo. With `last` it is the last sweep started on the store,
    and the demo only if there was none. With `held`, without FILE and options, the command gets a
    `Held`. With `sources`, a file with a corpus, or corpus and noise, is enough. With `two`, a
    command that is given two names gets a `Two`.
    """

    @click.argument(
        "words",
        nargs=-1,
        metavar="[FILE] | A B" if two else "[FILE]",
        shell_complete=_complete_file,
    )
    @click.option(
        "--noise",
        metavar="LEVELS",
        help="Noise levels in percent of the training samples, like 0,5,10,20,30 (or 0.05%).",
    )
    @click.option("--seeds", metavar="SEEDS", help="Pre-training seeds, like 0,1,2.")
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="PATH=VALUE",
        help="Change any field, like pretrain.recipe.schedule.epochs=5. Repeatable.",
    )
    @click.option(
        "--extension",
        "extensions",
        multiple=True,
        metavar="FILE",
        help="A Python file with methods, noises or claims of your own. Repeatable.",
    )
    @click.option("--storage", metavar="FOLDER", help="Where results go: a folder, s3:// or gs://.")
    @task_options
    @click.option(
        "--features",
        metavar="PARQUET",
        help="Adapt only these features: columns key, vector, label and optionally split.",
    )
    @click.option(
        "--task", metavar="NAME", help="The task that --features are of, or a name for a new task."
    )
    @wraps(function)
    def wrapped(
        words: tuple[str, ...],
        noise: str | None,
        seeds: str | None,
        overrides: tuple[str, ...],
        storage: str | None,
        tasks_path: tuple[str, ...],
        data: str | None,
        features: str | None,
        task: str | None,
        extensions: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        if two and len(words) == 2 and not any((noise, seeds, overrides, features, task)):
            return function(Two((words[0], words[1]), storage, tasks_path, data), **rest)
        file = one_file(words, noise, seeds)
        given = file, noise, seeds, overrides, storage, tasks_path, data, features, task, extensions
        if held and not any((*given[:4], *given[5:])):
            return function(Held(_store(storage)), **rest)
        with waiting("reading the experiment and planning its steps"):
            chosen = choose(*given, last=last, sources=sources)
        return function(chosen, **rest)

    return wrapped


def _complete_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Files, and the names of the bundled experiments, for the completion of a shell."""
    from orchestrator.experiment.load import bundled

    names = [name for name in bundled() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]


redo_option = click.option(
    "--redo",
    multiple=True,
    metavar="ADDRESS",
    help="Do this finished step again, and what reads it if its files change. Repeatable.",
)
"""For the commands that do steps: of one address, or of all that begin with a folder."""


last_experiment_options = partial(experiment_options, last=True)
"""For the commands that read the results of a sweep."""

report_options = partial(experiment_options, last=True, two=True)
"""For the report, of one sweep or of two."""

source_options = partial(experiment_options, sources=True)
"""For the commands that make corpora and noise."""

held_options = partial(experiment_options, sources=True, held=True)
"""For the commands that show or check them."""


def one_file(words: Sequence[str], noise: str | None, seeds: str | None) -> str | None:
    """The one FILE among a command's words; UserError for numbers that belong to a list."""
    from orchestrator.errors import UserError

    numbers = [word for word in words if word.replace(".", "", 1).rstrip("%").isdecimal()]
    for option, given in (("--noise", noise), ("--seeds", seeds)):
        if numbers and given is not None:
            listed = ",".join([given.rstrip(","), *numbers])
            raise UserError(f"{option} {given} {' '.join(numbers)}: use commas: {option} {listed}")
    if len(words) > 1:
        raise UserError(f"{' '.join(words)}: one FILE is read at a time; leave the others out")
    return words[0] if words else None


def _store(storage: str | None) -> Store:
    from jobs.storage.folder import Folder
    from orchestrator import STORAGE
    from orchestrator.store.store import Store

    return Store(Folder.of(STORAGE if storage is None else storage))


def choose(
    file: str | None,
    noise: str | None = None,
    seeds: str | None = None,
    overrides: tuple[str, ...] = (),
    storage: str | None = None,
    tasks_path: Sequence[str] = (),
    data: str | None = None,
    features: str | None = None,
    task: str | None = None,
    extensions: Sequence[str] = (),
    *,
    last: bool = False,
    sources: bool = False,
) -> Chosen:
    """Read, validate and plan an experiment. Raises UserError for any mistake in it.

    The parameters are those that `experiment_options` adds to a command. With `sources`, `seeds`
    are those of the draws of noise where the file has no pre-training.
    """
    from jobs.encoders.known import check_names
    from jobs.redaction import keep_secret
    from jobs.storage.folder import Folder
    from orchestrator.errors import UserError
    from orchestrator.experiment import last_sweep
    from orchestrator.experiment import load as experiments
    from orchestrator.experiment.model import Experiment, Sources
    from orchestrator.plan import build
    from orchestrator.store.store import Store

    if storage is not None:
        overrides = (*overrides, f"storage={_quoted(storage)}")
    if data is not None:
        overrides = (*overrides, f"data={_quoted(data)}")
    text = None
    if last and file is None and features is None:
        file, text, overrides = _last_sweep(overrides)
    try:
        experiment = experiments.load(
            file,
            text=text,
            overrides=overrides,
            noise=noise,
            seeds=seeds,
            task_folders=tasks_path,
            extensions=extensions,
            features=features,
            task=task,
            model=Sources if sources else Experiment,
        )
    except UserError as error:
        if text is not None and str(error).startswith(f"{file}:"):
            raise UserError(f"{error}; {last_sweep.REMEDY}") from error
        raise
    if text is not None:
        experiment = experiment.as_remembered()
    complaint = experiment.pretrain.recipe.model_fault() if experiment.pretrain else None
    if complaint:
        raise UserError(f"pretrain.recipe.model: {complaint}")
    for encoder in experiment.encoders:
        complaint = check_names(encoder)
        if complaint:
            raise UserError(f"encoders: {encoder.name}: {complaint}")
        if encoder.kind == "api":
            keep_secret(os.environ.get(encoder.key_env or "", "").strip())
    draws = (0,) if seeds is None else tuple(experiments.parse_seeds(seeds))
    plan = build.build(experiment, draws)
    gc.freeze()  # 50,000 steps live until the end; the garbage collector can skip them
    return Chosen(experiment, plan, Store(Folder.of(experiment.storage)))


def _last_sweep(overrides: tuple[str, ...]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Name and text of the last experiment on the store, and overrides that name the store."""
    import yaml

    from jobs import strict_yaml
    from jobs.storage.folder import Folder
    from orchestrator import STORAGE
    from orchestrator.experiment import last_sweep
    from orchestrator.store.store import Store

    given = [item.partition("=")[2] for item in overrides if item.startswith("storage=")]
    try:
        storage = strict_yaml.parse(given[-1]) if given else STORAGE
    except yaml.YAMLError:
        storage = None
    if not isinstance(storage, str):  # reported when the whole experiment is read
        return None, None, overrides
    root = Folder.of(storage)
    with Store(root).reading():
        text = last_sweep.recall(root)
    if text is None:
        return None, None, overrides
    return f"{storage}/{last_sweep.NAME}", text, (*overrides, f"storage={_quoted(storage)}")


def _quoted(text: str) -> str:
    """The text as YAML that is always read as a string."""
    return json.dumps(text, ensure_ascii=False)


def finished(chosen: Chosen, kind: str) -> list[Step]:
    """The finished steps of one kind of the experiment.

    Raises DriftError for a step made from other settings, UserError when there is none.
    """
    from orchestrator.errors import UserError
    from orchestrator.plan.assess import assess, refuse_drift
    from orchestrator.plan.states import StepState

    plan = chosen.plan.only(kind)
    found = assess(plan, chosen.store)
    refuse_drift(found)
    steps = [s for s in plan.of_kind(kind) if found[s.address].state is StepState.DONE]
    if not steps:
        raise UserError(
            f"{chosen.store.root.uri} has no {kind} step; run `nml-orch {kind} build` first"
        )
    return steps
