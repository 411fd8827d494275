"""Reads an experiment file, applies the command line's changes, and validates the result.

YAML is read by the safe loader, and repeated keys are refused. Overrides are dotted paths.
`model.py` has the fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs import strict_yaml
from jobs.contract import truth_value_fault
from jobs.explain import explain
from jobs.extensions.spec import SUFFIX
from jobs.storage.bounded import read_text
from orchestrator import EXPERIMENTS
from orchestrator.errors import UserError
from orchestrator.experiment import given_features, shares
from orchestrator.experiment.model import Experiment

DEMO = "demo"
"""The bundled experiment that runs when no file is given."""


def bundled() -> list[str]:
    """Names of the experiment files that ship with the project, as in demo or corpora/cifar10."""
    return sorted(_experiment_names(EXPERIMENTS, ""))


def _experiment_names(folder: Path, above: str) -> Iterator[str]:
    for found in folder.iterdir():
        if found.is_dir():
            yield from _experiment_names(found, f"{above}{found.name}/")
        elif found.name.endswith(".yaml"):
            yield f"{above}{found.name.removesuffix('.yaml')}"


def _read(source: str) -> tuple[str, str]:
    """(name for messages, text) of a path or of a bundled experiment."""
    path = Path(source)
    if path.exists() and not path.is_dir():
        try:
            return str(path), read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: cannot be read as text ({error}); give a file in UTF-8"
            ) from error
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
    extensions: Sequence[str] = (),
    features: str | None = None,
    task: str | None = None,
    text: str | None = None,
    model: type[Experiment] = Experiment,
) -> Experiment:
    """The experiment of a file or bundled name (none: the demo), with the command line's changes.

    `text` is the content of the file if it was read already; `source` is then its name in messages.

    `overrides` are `path.to.field=value` (value in YAML); `noise` a list of levels in percent,
    `seeds` a list of pre-training seeds, both comma-separated; `task_folders` and `extensions` are
    added to the file's own. With `features`, a Parquet file, the experiment is the adaptation of
    these features alone, to one ID task. With `Sources` as the model, the file may have a corpus
    and noise alone; `seeds` are then kept only where it has pre-training too. Raises UserError.
    """
    asks = text is None
    label, text = _read(source or DEMO) if text is None else (source or "the experiment", text)
    try:
        raw = strict_yaml.parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{label}: not valid YAML: {strict_yaml.in_words(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{label}: must be a mapping of fields, such as `name: my-experiment`")
    if features is not None:
        if noise is not None or seeds is not None:
            raise UserError(
                "--features: given features have no noise level and no pre-training seed; leave "
                "out --noise and --seeds"
            )
        own = source is None or source == DEMO
        raw = given_features.on_given(raw, features, task, short=own)
    elif (noise is not None or seeds is not None) and raw.get("encoders") and not raw.get("noise"):
        raise UserError(
            f"{label} pre-trains nothing; leave out --noise and --seeds, or give it corpus, noise "
            f"and pretrain"
        )
    elif task is not None:
        raise UserError(f"--task {task}: it names the task of --features FILE; give that too")
    if noise is not None:
        _assign(raw, "noise.levels", parse_levels(noise))
    if seeds is not None and (model is Experiment or raw.get("pretrain")):
        _assign(raw, "pretrain.seeds", parse_seeds(seeds))
    for item in overrides:
        path, equals, value = item.partition("=")
        if not equals or not all(part.strip() for part in path.split(".")):
            raise UserError(f"--set {item}: must read path=value, as in noise.seed=1")
        try:
            _assign(raw, path.strip(), strict_yaml.parse(value))
        except yaml.YAMLError as error:
            problem = strict_yaml.in_words(error)
            raise UserError(f"--set {item}: the value is not valid YAML: {problem}") from error
    shares.resolve(raw, label, asks=asks)
    _place_extensions(raw, source, extensions)
    if task_folders:
        raw["task_folders"] = [*(raw.get("task_folders") or ()), *task_folders]
    if (fault := truth_value_fault([model], raw)) is not None:
        raise UserError(f"{label}: {fault}")
    try:
        found = model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{label}: {explain(error, model)}") from error
    if task is not None:
        given_features.check_new(task, found.task_folders)
    return found


def _place_extensions(raw: dict[str, Any], source: str | None, added: Sequence[str]) -> None:
    """Add extensions to the file's own. A path in the file starts from the file's folder."""
    named = raw.get("extensions") or ()
    if isinstance(named, (list, tuple)) and all(isinstance(item, str) for item in named):
        file = Path(source or DEMO)
        folder = file.parent if file.is_file() else (EXPERIMENTS / f"{source}.yaml").parent
        own = [str(folder / item) if item.endswith(SUFFIX) else item for item in named]
        raw["extensions"] = [*own, *added]


def _assign(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path in nested mappings and lists, making mappings on the way."""
    *parents, last = path.split(".")
    node: Any = raw
    for name in parents:
        node = (
            node[_index(node, name, path)] if isinstance(node, list) else _child(node, name, path)
        )
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(
            f"--set {path}: {parents[-1]} is a value, it has no fields; leave out {last}"
        )


def _child(node: Any, name: str, path: str) -> Any:
    if not isinstance(node, dict):
        raise UserError(
            f"--set {path}: {name} is below a value, which has no fields; end the path before "
            f"{name}"
        )
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _index(node: list[Any], name: str, path: str) -> int:
    if not name.isdecimal() or int(name) >= len(node):
        raise UserError(f"--set {path}: {name} must be an index from 0 to {len(node) - 1}")
    return int(name)


def parse_levels(text: str) -> list[float | str]:
    """Noise levels in percent, ascending, from a comma-separated list; UserError otherwise.

    A level that ends with % stays text: its percent are meant (`shares`).
    """
    levels: dict[float, float | str] = {}
    for item in _items("--noise", text):
        try:
            level = float(item.removesuffix("%"))
        except ValueError:
            raise UserError(
                f"--noise {text}: {item!r} is not a number; give percentages such as 0,5,10,20,30"
            ) from None
        if not 0 <= level < 100:
            raise UserError(
                f"--noise {text}: {item} is outside 0 <= level < 100 percent; correct it"
            )
        if level in levels:
            raise UserError(f"--noise {text}: {level:g} is given twice; name each level once")
        levels[level] = item if item.endswith("%") else level
    return [levels[level] for level in sorted(levels)]


def _items(option: str, text: str) -> list[str]:
    """The members of a comma-separated list."""
    if "," not in text and len(words := text.split()) > 1:
        raise UserError(f"{option} {text}: use commas: {option} {','.join(words)}")
    return [item.strip() for item in text.split(",")]


def parse_seeds(text: str) -> list[int]:
    """Pre-training seeds, ascending, from a comma-separated list; UserError otherwise."""
    items = _items("--seeds", text)
    wrong = [item for item in items if not item.isdecimal()]
    if wrong:
        raise UserError(f"--seeds {text}: {wrong[0]!r} is not a whole number; give e.g. 0,1,2")
    seeds = [int(item) for item in items]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: a seed is given twice; name each once")
    return sorted(seeds)
