"""`nml-orch diff`: do two runs differ only in noise? Lists every field in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from orchestrator import STORAGE

if TYPE_CHECKING:
    from orchestrator.results.compare import Comparison, Pair
    from orchestrator.step.step import Difference

PAIRS_SHOWN = 20
ALONE_SHOWN = 5


@click.command(
    "diff",
    epilog="""\b
Examples:
  nml-orch diff pretrain/digits/symmetric/resnet-small/noise=0 \\
                pretrain/digits/symmetric/resnet-small/noise=10
  nml-orch diff /data/store-a /data/store-b        two stores, step by step
  nml-orch diff A B --json                         JSON, for scripts
Exit status: 0 they differ in nothing or only in noise, 1 in more than noise, 2 a mistake in the
command.""",
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--storage",
    metavar="FOLDER",
    default=STORAGE,
    show_default=True,
    help="The store that has the addresses: a folder, s3:// or gs://.",
)
@click.option("-v", "--verbose", is_flag=True, help="List the identical fields and all results.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(first: str, second: str, storage: str, verbose: bool, as_json: bool) -> int:
    """Compare the records of two finished steps, or of all steps below two folders or stores.

    A and B are addresses, beginnings of addresses, or paths of stores.
    """
    from jobs.storage.folder import Folder
    from orchestrator.results.compare import compare

    found = compare(first, second, Folder.of(storage))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "noise_alone": found.noise_alone,
                    "verdict": found.verdict(),
                    "pairs": [pair.as_dict() for pair in found.pairs],
                    "alone": list(found.alone),
                },
                indent=2,
            )
        )
    else:
        for line in _lines(found, verbose):
            click.echo(line)
    return 0 if found.noise_alone else 1


def _lines(found: Comparison, verbose: bool) -> Iterator[str]:
    """First the pairs that differ in more than noise; last the verdict."""
    ordered = sorted(found.pairs, key=lambda pair: not pair.differs)
    printed = ordered if verbose else ordered[:PAIRS_SHOWN]
    for pair in printed:
        yield from _pair(pair, verbose)
    if len(ordered) > len(printed):
        yield f"... and {len(ordered) - len(printed)} more pairs; -v lists them\n"
    for address in found.alone if verbose else found.alone[:ALONE_SHOWN]:
        yield f"alone      {address}"
    if len(found.alone) > ALONE_SHOWN and not verbose:
        yield f"           ... and {len(found.alone) - ALONE_SHOWN} more; -v lists them"
    yield found.verdict()


def _pair(pair: Pair, verbose: bool) -> Iterator[str]:
    yield f"A {pair.first}"
    yield f"B {pair.second}"
    yield from _group("noise", pair.noise)
    yield from _group("differs", pair.differs)
    if verbose:
        yield from _group("result", pair.results)
        yield from (f"  identical  {path}" for path in pair.identical)
    else:
        yield f"  identical  {len(pair.identical)} fields"
        if pair.results:
            yield f"  result     {len(pair.results)} numbers and digests differ, as results may"
    yield from (f"  beside     {remark}" for remark in pair.beside)
    yield ""


def _group(name: str, differences: Sequence[Difference]) -> Iterator[str]:
    return (f"  {name:<10} {difference}" for difference in differences)
