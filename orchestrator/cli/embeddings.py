"""`nml-orch embeddings`: what was bought from embedding APIs, whether it is whole, a copy of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from jobs.embeddings.ledger import Ledger
    from jobs.storage.folder import Folder

EXPORT_ROWS = 16_384  # vectors of an exported row group


def _storage(function: Any) -> Any:
    return click.option(
        "--storage",
        metavar="FOLDER",
        help="The store: a folder, s3:// or gs:// (else the default one).",
    )(function)


@click.group("embeddings")
def command() -> None:
    """Show, verify or export the ledgers: every vector that an embedding API has given."""


@command.command("show", epilog="Example: nml-orch embeddings show --storage s3://bucket/nml")
@_storage
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(storage: str | None, as_json: bool) -> None:
    """Show each ledger: host, model, texts, dimensions, tokens, what was paid."""
    found = [_row(name, identity, ledger) for name, identity, ledger in _ledgers(storage)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("nothing was bought in this store")
    for row in found:
        click.echo(f"{row['ledger']}\n  {row['model']} at {row['host']}")
        tokens = row["usage"] or row["counted"]
        how = "reported" if row["usage"] else "counted here"
        click.echo(
            f"  {row['texts']:,} texts of {row['dimensions'] or '?'} numbers; {tokens:,} tokens "
            f"({how}), {row['requests']:,} requests, price {row['price']:,.4g}; "
            f"{row['files']:,} files"
        )
        for drift in row["drifts"]:
            click.echo(
                f"  {drift['time']}: a change of the model was accepted (the canary's cosine "
                f"{drift['cosine']:.4f})"
            )


@command.command(
    "verify",
    epilog="""\b
Example: nml-orch embeddings verify
Exit status: 0 all is whole, 1 some file is damaged, 2 a mistake in the command.""",
)
@_storage
def verify(storage: str | None) -> int:
    """Read every vector and compare every file with its digest."""
    bad = 0
    for name, _, ledger in _ledgers(storage):
        faults = list(ledger.faults())
        bad += len(faults)
        for fault in faults:
            click.echo(f"{name}: {fault}")
        if not faults:
            click.echo(f"{name}: {len(ledger):,} vectors in {ledger.files:,} files are whole")
    return 1 if bad else 0


@command.command("export", epilog="Example: nml-orch embeddings export ada.parquet --ledger NAME")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_storage
@click.option("--ledger", "wanted", metavar="NAME", help="Which ledger, if there are several.")
def export(file: Path, storage: str | None, wanted: str | None) -> None:
    """Write a ledger into one Parquet FILE: sha256 of the text that was sent, and its vector."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jobs.storage.folder import Folder
    from orchestrator.errors import UserError

    found = {name: ledger for name, _, ledger in _ledgers(storage)}
    if wanted is None and len(found) == 1:
        wanted = next(iter(found))
    if wanted is None or wanted not in found:
        listed = ", ".join(found) or "none"
        raise UserError(f"--ledger: name one of this store's ledgers ({listed})")
    ledger = found[wanted]
    keys = list(ledger.keys)
    if ledger.dim is None:
        raise UserError(f"{wanted} has no vector yet; there is nothing to export")
    kind = pa.list_(pa.float32(), ledger.dim)
    schema = pa.schema([("text_sha256", pa.string()), ("vector", kind)])
    folder, name = Folder.holding(str(file.absolute()))
    with folder.new_file(name) as path, pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(keys), EXPORT_ROWS):
            some = keys[start : start + EXPORT_ROWS]
            flat = pa.array(ledger.vectors(some).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(flat, type=kind)
            names = pa.array([key.hex() for key in some])
            writer.write_table(pa.table([names, vectors], schema=schema))
    click.echo(f"{len(keys):,} vectors of {ledger.dim} numbers: {file}")


def _row(name: str, identity: dict[str, Any], ledger: Ledger) -> dict[str, Any]:
    paid = ledger.paid
    return {
        "ledger": name,
        "host": identity.get("host"),
        "model": identity.get("model"),
        "texts": len(ledger),
        "dimensions": ledger.dim,
        "requests": paid.requests,
        "counted": paid.counted,
        "usage": paid.usage,
        "price": paid.price,
        "files": ledger.files,
        "drifts": [{"time": one.time, "cosine": one.cosine} for one in ledger.drifts()],
    }


def _ledgers(storage: str | None) -> Iterator[tuple[str, dict[str, Any], Ledger]]:
    """The name, the identity and the ledger of each one in the store."""
    from jobs.embeddings.ledger import LEDGERS, Ledger, ledgers

    root = _root(storage)
    for name, identity in ledgers(root).items():
        yield name, identity, Ledger(root / LEDGERS / name)


def _root(storage: str | None) -> Folder:
    from jobs.storage.folder import Folder
    from orchestrator import STORAGE

    return Folder.of(storage or STORAGE)
