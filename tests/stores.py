"""Stores of finished sweeps: copied, so that a test redoes only a part, and compared."""

import hashlib
import json
import shutil
from pathlib import Path

from jobs.storage.folder import Folder

LEVEL_20 = (
    "pretrain/digits/symmetric/resnet-small/noise=20",
    "features/digits/symmetric/resnet-small/noise=20",
    "tune/digits/symmetric/resnet-small/noise=20",
)
"""What a TINY sweep makes of noise level 20, its overlay aside."""


def copy(made: Path, folder: Path, *without: str) -> Path:
    """A folder with a copy of another one's finished store, some of its steps not yet done.

    `without`: addresses, or the beginnings of such, whose steps are missing. Neither the report
    nor MLflow's database is copied.
    """
    store = folder / "nml-store"
    shutil.copytree(made / "nml-store", store, ignore=shutil.ignore_patterns("report"))
    for address in without:
        shutil.rmtree(store / address)
    return folder


def finished(folder: Path) -> dict[str, str]:
    """When each committed step was finished."""
    return {
        address: str(manifest["provenance"]["finished"])
        for address, manifest in manifests(folder).items()
    }


def manifests(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    """The manifest of every committed step, by its address."""
    root = folder / "nml-store"
    return {
        str(path.parent.relative_to(root)): json.loads(path.read_text())
        for path in sorted(root.rglob("manifest.json"))
        if not path.is_relative_to(root / "report")
    }


def digests(root: Folder) -> dict[str, str]:
    """Every step's files but its record, whose times and hosts are its own."""
    kept = {}
    for name, _ in root.files():
        stage = name.partition("/")[0]
        if stage in (
            "corpus",
            "hashes",
            "overlap",
            "noise",
            "pretrain",
            "features",
            "tune",
        ) and not name.endswith(("manifest.json", "timings.parquet")):
            kept[name] = hashlib.sha256(root.read_bytes(name)).hexdigest()
    return kept


def table(folder: Path) -> bytes:
    """The table of a TINY sweep's report."""
    return (folder / "nml-store/report/demo/table.csv").read_bytes()
