"""What a message tells a user to do exists: every command, option and field that one names."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from jobs.contract import Spec
from jobs.tasks.spec import Task
from orchestrator.cli import cli
from orchestrator.experiment.model import Experiment

ROOT = Path(__file__).parents[1]
MODULES = [
    path
    for room in ("orchestrator", "jobs", "analysis", "nml_orch")
    for path in sorted((ROOT / room).rglob("*.py"))
]


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """Every text of a module that is no docstring, f-strings in whole, with where it stands."""
    tree = ast.parse(path.read_text())
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            words = [
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            ]
            yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(words)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


@cache
def all_texts() -> list[tuple[str, str]]:
    return [found for path in MODULES for found in texts(path)]


def commands(group: click.Command, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(group, click.Group):
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix}{name}", command
        yield from commands(command, f"{prefix}{name} ")


COMMANDS = dict(commands(cli))
OPTIONS = {
    option
    for command in (cli, *COMMANDS.values())
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
} | {"--help"}


def fields(model: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every field below a model, as a dotted path."""
    for name, info in model.model_fields.items():
        yield ".".join((*path, name))
        for spec in specs_in(info.annotation):
            if len(path) < 5:
                yield from fields(spec, (*path, name))


def specs_in(annotation: Any) -> Iterator[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for inner in get_args(annotation):
        yield from specs_in(inner)


FIELDS = set(fields(Experiment))
NOT_FIELDS = re.compile(r"\.(yaml|yml|json|parquet|csv|md|txt|py|html|db|npy|safetensors|jpg|tar)$")
OF_OTHERS = {"--sort"}  # of tar, in the command that sorts one


def test_every_command_that_a_message_names_exists() -> None:
    named = {}
    for where, text in all_texts():
        for found in re.findall(r"nml-orch ([a-z]+(?: [a-z]+)?)", text):
            named[found] = where
    assert len(named) > 10
    unknown = {
        f"{words} ({where})"
        for words, where in named.items()
        if words not in COMMANDS and words.partition(" ")[0] not in COMMANDS
    }
    assert unknown == set()
    groups = {name for name, command in COMMANDS.items() if isinstance(command, click.Group)}
    assert {w for w in named if w.partition(" ")[0] in groups and " " in w} <= COMMANDS.keys()


def test_every_extra_that_a_message_names_can_be_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {
        found: where
        for where, text in all_texts()
        for found in re.findall(r"nml-orch\[(\w+)\]", text)
    }
    assert named.keys() == {"api", "lora", "optuna", "text"}
    assert {extra: where for extra, where in named.items() if extra not in extras} == {}


def test_every_option_that_a_message_names_exists() -> None:
    named = {}
    for where, text in all_texts():
        if not where.startswith(("orchestrator/cluster", "nml_orch")):  # which start Ray's commands
            for found in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if " " in text else ():
                named[found] = where
    assert len(named) > 10
    assert {o: w for o, w in named.items() if o not in OPTIONS | OF_OTHERS} == {}


@pytest.mark.parametrize(
    "section", ["corpus", "noise", "pretrain", "features", "tuning", "tracking"]
)
def test_every_field_that_a_message_names_exists(section: str) -> None:
    named = {}
    for where, text in all_texts():
        for found in re.findall(rf"(?<![\w./]){section}\.[a-z0-9_]+(?:\.[a-z0-9_]+)*", text):
            if not NOT_FIELDS.search(found) and " " in text:
                named[found] = where
    assert {name: where for name, where in named.items() if name not in FIELDS} == {}


def test_every_name_in_back_ticks_that_a_message_gives_is_a_field() -> None:
    """Such as "list it in `unlabelled`", also in hints that are put into a message later."""
    last = {name.rpartition(".")[2] for name in (*FIELDS, *fields(Task))}
    named = {
        word: where
        for where, text in all_texts()
        if not where.startswith("analysis/")  # which names columns
        for word in re.findall(r"`([a-z][a-z0-9_]*)`", text)
    }
    assert {"unlabelled", "label_names", "classes"} <= named.keys()
    values = {"skip", "stop", "encoder", "shared"}
    others = {"bytes", "huggingface", "txt", "cls"}  # of a Parquet file; of a tar
    others |= {"convmv", "bunzip2", "unxz", "unzstd"}  # other tools
    others |= {"forward_intermediates", "prepare"}  # of an extension
    assert {
        word: where for word, where in named.items() if word not in last | values | others
    } == {}
