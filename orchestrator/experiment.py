"""The experiment file: everything that decides what a sweep does, validated before it starts.

Read from YAML (safe loader, duplicate keys refused), changed by dotted overrides, checked by
pydantic models that refuse unknown fields. Fields that say how or where to run, not what (storage,
tracking, resources), are marked NOT_SEMANTIC and never bear on a result's identity.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from jobs import strict_yaml
from jobs.contract import NOT_SEMANTIC, PATH, Slug, Spec
from jobs.corpus.spec import Corpus
from jobs.encoders.spec import PretrainedEncoder
from jobs.features.spec import Features
from jobs.noise.spec import Noise
from jobs.pretrain.spec import Pretrain
from jobs.tasks import registry
from jobs.tasks.duplicates import duplicate_tests
from jobs.tasks.spec import Task
from jobs.tuning.spec import Tuning
from nml_orch import EXPERIMENTS
from orchestrator import STORAGE, named
from orchestrator.errors import UserError

DEMO = "demo"
"""The bundled experiment that runs when no file is given."""


class Tracking(Spec):
    """Where the store is mirrored to."""

    enabled: bool = True
    uri: str | None = Field(
        None, description="MLflow; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here"
    )


class Experiment(Spec):
    """A whole experiment of Noisy Model Learning."""

    name: Slug
    title: str = ""
    corpus: Corpus | None = None
    noise: Noise | None = None
    pretrain: Pretrain | None = None
    encoders: tuple[PretrainedEncoder, ...] = Field((), description="named, not trained here")
    features: Features = Features()
    tasks: tuple[Slug, ...] = Field(min_length=1)
    tuning: Tuning
    task_folders: Annotated[tuple[str, ...], PATH, NOT_SEMANTIC] = ()
    data: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="where the paths of task files start; else $NML_DATA, else here"
    )
    storage: Annotated[str, PATH, NOT_SEMANTIC] = Field(STORAGE, min_length=1)
    tracking: Annotated[Tracking, NOT_SEMANTIC] = Tracking()

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in tasks if tasks.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named twice; an average counts a task once")
        return tasks

    @field_validator("encoders")
    @classmethod
    def _named_once(cls, encoders: tuple[PretrainedEncoder, ...]) -> tuple[PretrainedEncoder, ...]:
        names = [encoder.name for encoder in encoders]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named twice; give each encoder its own name")
        return encoders

    @model_validator(mode="after")
    def _trains_all_or_nothing(self) -> Experiment:
        sections = {"corpus": self.corpus, "noise": self.noise, "pretrain": self.pretrain}
        missing = [name for name, section in sections.items() if section is None]
        if len(missing) == len(sections) and not self.encoders:
            raise ValueError(
                "corpus, noise and pretrain are missing; give all three, or `encoders`, or both"
            )
        if missing and len(missing) < len(sections):
            raise ValueError(
                f"{' and '.join(missing)} missing; pre-training needs corpus, noise and pretrain "
                f"together, and an experiment on named encoders alone none of them"
            )
        return self

    @model_validator(mode="after")
    def _corpus_can_be_learned(self) -> Experiment:
        if self.corpus is not None and self.corpus.parts.train == 0:
            raise ValueError("corpus.parts.train is 0: nothing is left to pre-train on; raise it")
        return self

    @model_validator(mode="after")
    def _noise_fits_objective(self) -> Experiment:
        if self.pretrain is None or self.noise is None:
            return self
        objective = self.pretrain.recipe.objective
        target = {"supervised": "label", "contrastive": "caption"}[objective]
        usual = {"label": "symmetric", "caption": "caption_swap"}[target]
        if self.noise.replaces != target:
            raise ValueError(
                f"noise.kind={self.noise.kind} changes {self.noise.replaces}s and a {objective} "
                f"recipe learns from {target}s; use {usual} or another kind for {target}s"
            )
        return self

    def load_tasks(self) -> tuple[Task, ...]:
        """Every task, in the file's order, each OOD task after the one it is trained on.

        Reads task files, so the planner alone calls it, once; everybody else reads `Plan.tasks`.
        A name without a task file is an ID task of its own when an encoder gives features for it.
        Raises UserError for unknown names, for an OOD task whose ID task is not listed, and for two
        tasks that would test the same samples by the same labels.
        """
        folders = [Path(folder) for folder in self.task_folders]
        try:
            known, given = registry.names(folders), named.given_tasks(self.encoders)
            tasks = [
                Task(name=name, title=name, domain="id", source="features")
                if name not in known and name in given
                else registry.load(name, folders, self.data)
                for name in self.tasks
            ]
        except (ValueError, OSError) as error:
            raise UserError(f"tasks: {error}") from error
        names = {task.name for task in tasks}
        for task in tasks:
            if task.trained_on is not None and task.trained_on not in names:
                raise UserError(
                    f"tasks: {task.name} is trained on {task.trained_on}, which is not listed; "
                    f"add it"
                )
        for first, second in duplicate_tests(tasks):
            raise UserError(
                f"tasks: {first} and {second} test the same samples by the same labels, and an "
                f"average counts a task once; take one out, or correct its reader"
            )
        named.check(self.encoders, {task.name: task for task in tasks})
        return tuple(sorted(tasks, key=lambda task: task.domain == "ood"))


# -- reading ---------------------------------------------------------------------------------------


def bundled() -> list[str]:
    """Names of the experiment files that ship with the project, as in demo or corpora/cifar10."""
    return sorted(_named(EXPERIMENTS, ""))


def _named(folder: Path, above: str) -> Iterator[str]:
    for found in folder.iterdir():
        if found.is_dir():
            yield from _named(found, f"{above}{found.name}/")
        elif found.name.endswith(".yaml"):
            yield f"{above}{found.name.removesuffix('.yaml')}"


def _read(source: str) -> tuple[str, str]:
    """(what to call it in messages, its text) of a path, or of a bundled experiment's name."""
    path = Path(source)
    if path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as text ({error})") from error
    if source in bundled():
        text = (EXPERIMENTS / f"{source}.yaml").read_text(encoding="utf-8")
        return f"{source}.yaml", text
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), bundled(), n=1)
    hint = f"did you mean the bundled {near[0]!r}?" if near else f"bundled: {', '.join(bundled())}"
    raise UserError(f"{source}: no such experiment file; give a YAML file or a name ({hint})")


def load(
    source: str | None = None,
    *,
    overrides: Iterable[str] = (),
    noise: str | None = None,
    seeds: str | None = None,
    task_folders: Sequence[str] = (),
    features: str | None = None,
    task: str | None = None,
    text: str | None = None,
) -> Experiment:
    """The experiment of a file or bundled name (none: the demo), with the command line's changes.

    `text` is what the file says, where it was read already; `source` is what to call it then.

    `overrides` are `path.to.field=value` (value in YAML); `noise` a list of levels in percent,
    `seeds` a list of pre-training seeds, both comma-separated; `task_folders` are added to the
    file's own. `features` is a Parquet file: the experiment is then the adaptation of those
    features alone, to one ID task. Raises UserError.
    """
    label, text = _read(source or DEMO) if text is None else (source or "the experiment", text)
    try:
        raw = strict_yaml.parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{label}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{label}: must be a mapping of fields, such as `name: my-experiment`")
    if features is not None:
        if noise is not None or seeds is not None:
            raise UserError(
                "--features: given features have no noise level and no pre-training seed; leave "
                "out --noise and --seeds"
            )
        raw = named.on_given(raw, features, task)
    elif (noise is not None or seeds is not None) and raw.get("encoders") and not raw.get("noise"):
        raise UserError(
            f"{label} pre-trains nothing; leave out --noise and --seeds, or give it corpus, noise "
            f"and pretrain"
        )
    elif task is not None:
        raise UserError(f"--task {task}: it names the task of --features FILE; give that too")
    if noise is not None:
        _assign(raw, "noise.levels", parse_levels(noise))
    if seeds is not None:
        _assign(raw, "pretrain.seeds", parse_seeds(seeds))
    for item in overrides:
        path, equals, value = item.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set {item}: must read path=value, as in noise.seed=1")
        try:
            _assign(raw, path.strip(), strict_yaml.parse(value))
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "it cannot be read"
            raise UserError(f"--set {item}: the value is not valid YAML ({problem})") from error
    if task_folders:
        raw["task_folders"] = [*(raw.get("task_folders") or ()), *task_folders]
    try:
        found = Experiment.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{label}: {explain(error, Experiment)}") from error
    if task is not None:
        named.check_new(task, found.task_folders)
    return found


def _assign(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in nested mappings and lists, making mappings on the way."""
    *parents, last = path.split(".")
    node: Any = raw
    for name in parents:
        node = node[_index(node, name, path)] if isinstance(node, list) else _child(node, name)
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {path}: {'.'.join(parents)} is a value, it has no fields")


def _child(node: Any, name: str) -> Any:
    if not isinstance(node, dict):
        raise UserError(f"--set: {name} lies below a value, which has no fields")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _index(node: list[Any], name: str, path: str) -> int:
    if not name.isdecimal() or int(name) >= len(node):
        raise UserError(f"--set {path}: {name} must be an index from 0 to {len(node) - 1}")
    return int(name)


def parse_levels(text: str) -> list[float]:
    """Noise levels in percent, ascending, from a comma-separated list; UserError otherwise."""
    levels: list[float] = []
    for item in text.split(","):
        try:
            level = float(item)
        except ValueError:
            raise UserError(
                f"--noise {text}: {item.strip()!r} is not a number; "
                f"give percentages such as 0,5,10,20,30"
            ) from None
        if not 0 <= level < 100:
            raise UserError(f"--noise {text}: {item.strip()} is outside 0 <= level < 100 percent")
        if level in levels:
            raise UserError(f"--noise {text}: {level:g} is given twice; name each level once")
        levels.append(level)
    return sorted(levels)


def parse_seeds(text: str) -> list[int]:
    """Pre-training seeds, ascending, from a comma-separated list; UserError otherwise."""
    items = [item.strip() for item in text.split(",")]
    wrong = [item for item in items if not item.isdecimal()]
    if wrong:
        raise UserError(f"--seeds {text}: {wrong[0]!r} is not a whole number; give e.g. 0,1,2")
    seeds = [int(item) for item in items]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed is given twice; name each once")
    return sorted(seeds)


# -- explaining ------------------------------------------------------------------------------------


def explain(error: ValidationError, model: type[Spec]) -> str:
    """One sentence for the first thing wrong, with field, value and remedy."""
    problems = _distinct(error.errors())
    first = problems[0]
    path = _field_path(model, first["loc"])
    field = ".".join(path) or "the file"
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
        sentence = f"unknown field {field} ({remedy})"
    elif kind == "missing":
        sentence = f"{field} is missing; give it a value"
    elif kind == "union_tag_not_found":
        sentence = f"{field}.{first['ctx']['discriminator'].strip(chr(39))} is missing; give it one"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        shown = "" if isinstance(value, (dict, Spec)) else f" = {value!r}"
        sentence = f"{field}{shown}: {message}"
    more = len(problems) - 1
    return sentence + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _distinct(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The problems, without those that follow from others: a field that is missing because its
    name is mistyped, and a list that is too short because a member of it is wrong.
    """
    unknown = [one["loc"] for one in problems if one["type"] == "extra_forbidden"]

    def follows(one: ErrorDetails) -> bool:
        *place, name = one["loc"] or ("",)
        if one["type"] == "missing":
            beside = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == place]
            return bool(difflib.get_close_matches(str(name), beside, n=1))
        within = (other["loc"][: len(one["loc"])] == one["loc"] for other in problems)
        return one["type"] == "too_short" and sum(within) > 1

    return [one for one in problems if not follows(one)]


def _field_path(model: type[Spec], location: tuple[int | str, ...]) -> list[str]:
    """An error's place as fields alone, without pydantic's names for the branches it took."""
    candidates, path = [model], []
    for part in location:
        tags = {
            info.default
            for candidate in candidates
            for name, info in candidate.model_fields.items()
            if name in ("kind", "objective")
        }
        if part in tags or str(part).startswith(("function-", "tagged")):
            continue
        path.append(str(part))
        inner = [
            spec
            for candidate in candidates
            if part in candidate.model_fields
            for spec in _specs_in(candidate.model_fields[str(part)].annotation)
        ]
        candidates = inner or candidates
    return path


def _fields_at(model: type[Spec], path: list[str]) -> list[str]:
    """Field names of the model that stands at a path of an experiment."""
    candidates = [model]
    for name in path:
        found: list[type[Spec]] = []
        for candidate in candidates:
            info = candidate.model_fields.get(name)
            if info is not None:
                found += _specs_in(info.annotation)
            elif candidate.model_fields.get("objective") or candidate.model_fields.get("kind"):
                found.append(candidate)  # a discriminator's tag in the path, not a field
        candidates = found or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _specs_in(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for inner in get_args(annotation) for spec in _specs_in(inner)]
