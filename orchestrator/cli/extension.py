"""`nml-orch extension`: writes, lists and checks files with parts of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from jobs.extensions.declared import Declared
    from jobs.extensions.spec import Extension, Part


@click.group("extension")
def command() -> None:
    """Write, list or check files with methods, encoders, noises and claims of your own."""


@command.command("new")
@click.argument("name")
def new(name: str) -> None:
    """Write NAME.py here: a commented file that runs."""
    from importlib.resources import files

    from jobs.extensions.spec import SUFFIX, is_name
    from orchestrator.errors import UserError

    name = name.removesuffix(SUFFIX)
    if not is_name(name):
        raise UserError(
            f"{name}: an extension's name is letters, digits and underscores; give one such as "
            f"my_methods"
        )
    path = Path(f"{name}{SUFFIX}")
    text = (files("jobs.extensions") / "template.txt").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text.replace("NAME", name))
    except FileExistsError:
        raise UserError(f"{path} exists; give another name, or delete it") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); give another name, or change to a "
            f"folder you may write to"
        ) from error
    click.echo(f"wrote {path}; try it: nml-orch extension check {path}")


@command.command("list")
@click.argument("named", nargs=-1, metavar="[FILE]...")
def list_(named: tuple[str, ...]) -> None:
    """List the parts of files, or of what installed packages bring. Runs none of them."""
    from importlib.metadata import entry_points

    from jobs.extensions.files import GROUP

    names = named or tuple(point.name for point in entry_points(group=GROUP))
    if not names:
        click.echo("no installed package brings an extension; name a file")
    for extension, parts in _found(names):
        for part in parts.values():
            ranges = ", ".join(f"{name}: {limits}" for name, limits in part.ranges.items())
            summary = f"  {part.summary}" if part.summary else ""
            click.echo(f"{part.kind:<8} {extension.name}:{part.name}{summary}")
            if ranges:
                click.echo(f"{'':<9}{ranges}")


@command.command("check")
@click.argument("named", nargs=-1, required=True, metavar="FILE...")
def check(named: tuple[str, ...]) -> int:
    """Try every part of a file on made-up data.

    A method must give in a stack what it gives alone, or, if it trains the encoder, with an
    interruption what it gives without. An encoder must depend on its image and its weights alone.

    Exit status: 0 all parts work; 2 one does not.
    """
    from jobs.contract import StageError
    from jobs.extensions.spec import Part

    faults = 0
    for extension, parts in _found(named):
        for part in parts.values():
            try:
                click.echo(f"ok     {part.name}: {_try(Part(extension, part.name), part)}")
            except StageError as error:
                faults += 1
                click.echo(f"fault  {part.name}: {error}")
        if not parts:
            faults += 1
            click.echo(
                f"fault  {extension.file} has no method, encoder, noise or claim; begin with what "
                f"`nml-orch extension new` writes"
            )
    return 2 if faults else 0


def _found(named: tuple[str, ...]) -> Iterator[tuple[Extension, Mapping[str, Declared]]]:
    from jobs.contract import StageError
    from jobs.extensions import declared
    from jobs.extensions.files import find
    from orchestrator.errors import UserError

    try:
        found = find(named)
        parts = {name: declared.parts(extension) for name, extension in found.items()}
    except StageError as error:
        raise UserError(str(error)) from error
    for name, extension in found.items():
        yield extension, parts[name]


def _try(part: Part, declared: Declared) -> str:
    """One sentence about a part that works. Raises StageError for one that does not."""
    if declared.trains_encoder:
        from jobs.tuning.finetune.check import check as check_training

        return check_training(part, declared)
    if declared.kind == "method":
        from jobs.tuning.frozen.check import check as check_method

        return check_method(part, declared)
    if declared.kind == "encoder":
        from jobs.encoders.own_check import check as check_encoder

        return check_encoder(part, declared)
    if declared.kind == "noise":
        from jobs.noise.own import check as check_noise

        return check_noise(part, declared)
    from orchestrator.experiment.own_claims import check as check_claim

    return check_claim(part)
