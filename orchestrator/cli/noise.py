"""`nml-orch noise`: build only the noise levels of an experiment, and prove what was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import (
    Chosen,
    Held,
    finished,
    held_options,
    redo_option,
    source_options,
)

if TYPE_CHECKING:
    from jobs.noise.audit import Audit
    from jobs.noise.spec import NoiseStep
    from orchestrator.store.store import Store

CLASSES_SHOWN = 20


@click.group("noise")
def command() -> None:
    """Build only the noise levels of an experiment, or audit them row by row."""


@command.command("build", epilog="Example: nml-orch noise build my.yaml --noise 0,5,10,20,30")
@source_options
@click.option("--force", is_flag=True, help="Redo the steps whose settings have changed.")
@redo_option
def build(chosen: Chosen, force: bool, redo: tuple[str, ...]) -> int:
    """Build the corpus and the overlay of every noise level.

    FILE needs corpus and noise alone. --seeds are those of the replicates, which have a draw each.
    """
    from orchestrator.errors import UserError
    from orchestrator.run import sweep

    if chosen.experiment.noise is None:
        raise UserError("noise is missing; give kind, name and levels, or `nml-orch corpus build`")
    plan = chosen.plan.only("noise")
    results = sweep.build(plan, chosen.store, force=force, redo=plan.named(redo))
    bad = {a: r for a, r in results.items() if not r.state.finished}
    for step in plan.of_kind("noise"):
        if step.address not in bad:
            manifest = chosen.store.manifest(step.address)
            if manifest is not None:
                percent = manifest.metrics["noise/realised_percent"]
                click.echo(f"{step.address}: {manifest.counts['changed']:,} rows ({percent:.2f} %)")
    for address, result in bad.items():
        click.echo(f"{result.state:8} {address}: {result.reason}")
    return 1 if bad else 0


@command.command(
    "audit",
    epilog="""\b
Examples:
  nml-orch noise audit my.yaml             derive every changed row again and compare
  nml-orch noise audit my.yaml --json      JSON, for scripts
Exit status: 0 no difference, 1 some difference, 2 a mistake in the command or the file.""",
)
@held_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(chosen: Chosen | Held, as_json: bool) -> int:
    """Derive every changed row again, and print the true rates.

    Without FILE: of all noise that the store holds.

    Writes for each level audit.json, and transition.png for label noise, under audit/ in the store.
    """
    from jobs.contract import StageError
    from jobs.noise.audit import Auditor
    from orchestrator.errors import UserError
    from orchestrator.step.address import CorpusAddress

    audits: dict[str, Audit | str] = {}  # a string: why a level cannot be audited
    auditors: dict[str, Auditor] = {}  # of each draw
    for address, spec in _levels(chosen).items():
        draw = address.rpartition("/")[0]
        try:
            if draw not in auditors:
                corpus = chosen.store.committed(str(CorpusAddress(spec.corpus)))
                auditors[draw] = Auditor(spec.noise, corpus)
        except (StageError, FileNotFoundError) as error:
            raise UserError(f"the noise cannot be derived again: {error}") from error
        try:
            output = chosen.store.output(address)
            audits[address] = auditors[draw].audit(output, spec.level)
        except StageError as error:
            audits[address] = str(error)
        _keep(chosen.store, address, audits[address])
    if as_json:
        click.echo(json.dumps({a: _as_dict(found) for a, found in audits.items()}, indent=2))
    else:
        for line in _lines(audits):
            click.echo(line)
        click.echo(f"\nkept in {chosen.store.root.uri}/audit")
    sound = (not isinstance(found, str) and found.sound for found in audits.values())
    return 0 if all(sound) else 1


def _levels(chosen: Chosen | Held) -> dict[str, NoiseStep]:
    """The finished levels, by address: those of the experiment, or all that the store holds.

    Raises UserError for a level of the store whose noise an experiment file alone describes.
    """
    from pydantic import ValidationError

    from jobs.noise.spec import NoiseStep
    from orchestrator.errors import UserError
    from orchestrator.step.address import NoiseAddress, parse_as

    found: dict[str, NoiseStep] = {}
    if isinstance(chosen, Held):
        for address in chosen.addresses("noise"):
            manifest, known = chosen.store.manifest(address), parse_as(NoiseAddress, address)
            spec = manifest.fields.get("spec", {}) if manifest else {}
            named = {"name": known.noise, "levels": [known.level]}  # these bear no identity
            try:
                noise = {**spec.get("noise", {}), **named}
                found[address] = NoiseStep.model_validate({**spec, "noise": noise})
            except ValidationError as error:
                raise UserError(
                    f"{address} records not all that its noise was made from (its file, say); name "
                    f"its experiment FILE"
                ) from error
    else:
        for step in finished(chosen, "noise"):
            assert isinstance(step.spec, NoiseStep)
            found[step.address] = step.spec
    return found


def _as_dict(found: Audit | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"sound": False, "faults": {"damaged": 1}, "first_fault": found}
    return found.as_dict()


def _keep(store: Store, address: str, found: Audit | str) -> None:
    from analysis.figures import noise
    from analysis.figures.style import save
    from orchestrator.step.address import AuditAddress, NoiseAddress, parse_as

    folder = store.root / str(AuditAddress(parse_as(NoiseAddress, address)))
    folder.write_json("audit.json", _as_dict(found))
    if isinstance(found, str):
        folder.delete("transition.png")  # an earlier audit's
    elif found.transition is not None:
        overlay = found.overlay
        figure = noise.transition(
            found.transition,
            [rate.name for rate in found.classes],
            title=f"{overlay.corpus}: {overlay.kind} noise at {overlay.level:g} %",
            detail=f"{found.present_changed:,} of {found.present:,} training rows are wrong "
            f"({found.realised_percent:.2f} %)",
        )
        folder.write_bytes("transition.png", save(figure, "png"))


def _lines(audits: dict[str, Audit | str]) -> Iterator[str]:
    """One row for each level and draw, then one for each class if they are few, then the
    differences.
    """
    noises: dict[tuple[str, str], list[Audit]] = {}  # a store may hold several
    for one in audits.values():
        if not isinstance(one, str):
            noises.setdefault((one.overlay.kind, one.overlay.corpus), []).append(one)
    for found in noises.values():
        yield from _table(found)
        for draw in dict.fromkeys(one.overlay.seed for one in found):
            yield from _classes([one for one in found if one.overlay.seed == draw])
    for address, one in audits.items():
        if isinstance(one, str):
            yield f"\nDIFFERS {address}: {one}"
        elif not one.sound:
            kinds = ", ".join(f"{count} {kind}" for kind, count in one.faults.items() if count)
            yield f"\nDIFFERS {address}: {kinds}; {one.first_fault}"
            how = f"`nml-orch noise build` with the same options and --redo {address}"
            yield f"{address}: {how} builds it again"


def _table(found: list[Audit]) -> Iterator[str]:
    yield f"{found[0].overlay.kind} noise over {found[0].overlay.corpus}"
    heads = ("level %", "draw", "written %", "realised %", "rows", "changed", "derived", "differ")
    yield "".join(f"{head:>11}" for head in heads)
    for one in found:
        values = (
            f"{one.nominal_percent:g}",
            "–" if one.overlay.seed is None else f"{one.overlay.seed}",
            f"{one.written_percent:.3f}",
            f"{one.realised_percent:.3f}",
            f"{one.present:,}",
            f"{one.present_changed:,}",
            f"{one.rederived:,}",
            f"{sum(one.faults.values()):,}",
        )
        yield "".join(f"{value:>11}" for value in values)


def _classes(found: list[Audit]) -> Iterator[str]:
    """The realised percentages of each class in one draw, if the classes are few."""
    classes, draw = found[0].classes, found[0].overlay.seed
    if 0 < len(classes) <= CLASSES_SHOWN:
        width = max(len(rate.name) for rate in classes) + 2
        yield "\nrealised % of each class" + ("" if draw is None else f", draw {draw}")
        yield f"{'':{width}}{'rows':>10}" + "".join(f"{one.nominal_percent:>10g}" for one in found)
        for number, rate in enumerate(classes):
            row = "".join(f"{one.classes[number].percent:>10.2f}" for one in found)
            yield f"{rate.name:{width}}{rate.rows:>10,}{row}"
