"""Writes the report of a store and keeps it there.

Takes a plan and its store. Writes the report again whenever the steps that it reads have changed,
and stores it under `report/<experiment>`, its own manifest last. The report is a view, not
evidence, so it has no drift.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import pretrained
from analysis.readout import Readout
from analysis.registration import Registration
from analysis.report import answer, facts
from analysis.summary import summary as summarised
from jobs import records
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError, UserError
from orchestrator.experiment.last_sweep import as_yaml
from orchestrator.experiment.registered import register
from orchestrator.plan.assess import look
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.results import derived
from orchestrator.results.tables import FinishedSteps
from orchestrator.step.address import ReportAddress
from orchestrator.step.fingerprint import fingerprint
from orchestrator.store import provenance
from orchestrator.store.lease import Leases
from orchestrator.store.manifest import MANIFEST
from orchestrator.store.store import Store
from orchestrator.tracking.pages import runs_page
from orchestrator.tracking.runs import NOTE, Data, SweepRecord
from orchestrator.tracking.server import resolve_uri

PATIENCE = 600.0  # seconds until the report of another process must be written
RETRY_SECONDS = 0.2
PROTOCOL = 11  # raised when the report's contents change
SUMMARY = "summary.parquet"
PRETRAINED = "encoders.parquet"


@dataclass(frozen=True)
class _Written:
    """What a report's own manifest says of it."""

    fingerprint: str
    files: dict[str, str]  # name -> sha256
    constant: str  # which cells predict the same for every test sample
    answer: str = ""  # what was found, in one sentence


@dataclass(frozen=True)
class Report:
    """A written report."""

    folder: Folder
    fingerprint: str
    summary: pa.Table  # analysis.schemas.SUMMARY_SCHEMA
    pretrained: pa.Table  # analysis.schemas.PRETRAINED_SUMMARY_SCHEMA
    complete: bool  # every step of the plan is finished
    data: tuple[Data, ...]  # the corpora that the steps read
    claims: tuple[Registration, ...] = ()  # the registered ones and their history
    constant: str = ""  # which cells predict the same for every test sample, in a sentence
    answer: str = ""  # what was found, in one sentence

    def record(self, folder: Path) -> SweepRecord:
        """What MLflow's parent run shows; `folder` is a local folder with the report's files.

        Pretrained encoders have metrics of their own, at step 0: they have no noise level.
        """
        points = [(row["metric"], row["noise"], row["mean"]) for row in self.summary.to_pylist()]
        points += [
            (
                f"encoders/{row['encoder']}/{row['task']}/{row['method']}/"
                f"{row['metric'] or 'accuracy'}/"
                f"fraction_{row['fraction']:g}",
                0.0,
                pretrained.main_score(row),
            )
            for row in self.pretrained.to_pylist()
        ]
        return SweepRecord(
            fingerprint=self.fingerprint,
            points=tuple(points),
            folder=folder,
            status="done" if self.complete else "incomplete",
            data=self.data,
            claims=", ".join(self.claims[-1].claims or ())[:NOTE] if self.claims else "",
            constant=self.constant[:NOTE],
            answer=self.answer,
            score="; ".join(scores(self.summary)),
            features_dtype=next((d for d in self.summary["dtype"].to_pylist() if d), ""),
        )


def scores(summary: pa.Table) -> list[str]:
    """What `score` is in each domain, where tasks have several metrics: "id score (...)"."""
    found = {
        f"{row['metric'].split('/')[0]} {row['metrics']}"
        for row in summary.to_pylist()
        if row["metrics"]
    }
    return sorted(found)


def collect(plan: Plan, store: Store) -> Readout:
    """The finished steps of a plan, as the tables that `analysis` reads."""
    return FinishedSteps(plan, store).readout({}, ())


def refresh(
    plan: Plan,
    store: Store,
    problems: Mapping[str, StepStatus] | None = None,
    *,
    rotation: bool = False,
) -> Report:
    """The report of the finished steps. It is written only if they have changed.

    `problems` are the steps that this run could not finish. If it is None, they are read from the
    store. `rotation` measures how far each feature space has rotated, which reads all test
    features; later reports keep the measurement. A verdict is given on registered claims, so the
    experiment's claims are registered here too if they are new. Raises UserError if no step is
    finished.
    """
    found = FinishedSteps(plan, store)
    claims = register(plan.experiment, store.root, lambda: store.count(plan.steps))
    rotations = list(derived.rotations(found.done("features"), store, rotation))
    if problems is None:
        found_now = look(plan, store)
        problems = {a: s for a, s in found_now.items() if s.state is not StepState.DONE}
    report_fingerprint = fingerprint(
        {
            "protocol": PROTOCOL,
            "figures": _drawn(),
            "title": plan.experiment.title,
            "claims": [asdict(entry) for entry in claims],
            "steps": {address: r.fingerprint for address, r in found.records.items()},
            "made": {address: r.finished for address, r in found.records.items()},
            "rotation": len(rotations),
            "problems": {a: [p.state, p.reason] for a, p in problems.items()},
        }
    )
    folder = store.root / str(ReportAddress(plan.experiment.name))
    complete = len(found.records) == len(plan.steps)
    stored = _stored(found, folder, report_fingerprint, complete, claims)
    if stored is not None:
        return stored
    with _alone(store, plan.experiment.name):
        return _stored(found, folder, report_fingerprint, complete, claims) or _write(
            found, folder, report_fingerprint, problems, complete, rotations, claims
        )


def _stored(
    found: FinishedSteps,
    folder: Folder,
    report_fingerprint: str,
    complete: bool,
    claims: Sequence[Registration],
) -> Report | None:
    """The report in the store, if it is of these steps and as it was written; else None."""
    stored = records.find(folder, MANIFEST, _Written)
    if stored is None or stored.fingerprint != report_fingerprint:
        return None
    with suppress(OSError, pa.ArrowException):  # damaged, or written by another at this moment
        if _intact(folder, stored.files):
            return Report(
                folder,
                report_fingerprint,
                folder.read_table(SUMMARY),
                folder.read_table(PRETRAINED),
                complete,
                found.data(),
                tuple(claims),
                stored.constant,
                stored.answer,
            )
    return None


def _drawn() -> bool:
    """Whether reports have figures, most of their cost: `NML_FIGURES=0` leaves them out."""
    return os.environ.get("NML_FIGURES") != "0"


@contextmanager
def _alone(store: Store, experiment: str) -> Iterator[None]:
    """Hold the lease of an experiment's report, so that no two are written into one folder.

    Two sweeps that share a store may end at the same time. Waits up to PATIENCE for the other.
    """
    address, leases = str(ReportAddress(experiment)), Leases(store.root)
    deadline = time.monotonic() + PATIENCE
    try:
        while not leases.acquire(address):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another sweep or command on this store is writing {address}; when it has "
                    f"ended, run `nml-orch report`"
                )
            time.sleep(RETRY_SECONDS)
        yield
    finally:
        with suppress(OSError):
            leases.close()


def _intact(folder: Folder, files: Mapping[str, str]) -> bool:
    """Whether a stored report has the files that were written."""
    here = [name for name, _ in folder.files() if name != MANIFEST]
    return files == {name: folder.sha256(name) for name in here}


def _write(
    found: FinishedSteps,
    folder: Folder,
    report_fingerprint: str,
    problems: Mapping[str, StepStatus],
    complete: bool,
    rotations: Sequence[dict[str, Any]],
    claims: Sequence[Registration],
) -> Report:
    from analysis.report.write import write

    if not found.records:
        raise UserError(f"nothing to report: {folder.uri} has no finished step; run a sweep first")
    tracking = found.plan.experiment.tracking
    server = resolve_uri(tracking.uri) if tracking.enabled else ""
    page = runs_page(server, found.plan.experiment.name)
    readout = found.readout(problems, rotations, claims, page)
    same, found_in_short = facts.constant(readout), answer.answer(readout)
    summary, of_pretrained = summarised(readout), pretrained.summary(readout)
    with tempfile.TemporaryDirectory() as temporary:
        local_folder = Path(temporary)
        write(readout, local_folder, drawn=_drawn())
        (local_folder / "experiment.yaml").write_text(as_yaml(found.plan.experiment))
        pq.write_table(summary, local_folder / SUMMARY)
        pq.write_table(of_pretrained, local_folder / PRETRAINED)
        folder.delete()
        files = sorted(path for path in local_folder.rglob("*") if path.is_file())
        digests = {}
        for path in files:
            name, data = path.relative_to(local_folder).as_posix(), path.read_bytes()
            folder.write_bytes(name, data)
            digests[name] = hashlib.sha256(data).hexdigest()
    folder.write_json(
        MANIFEST,
        {
            "fingerprint": report_fingerprint,
            "kind": "report",
            "files": digests,
            "constant": same,
            "answer": found_in_short,
            "provenance": {**provenance.environment(), "finished": provenance.now()},
        },
    )
    of_steps = complete, found.data(), tuple(claims), same, found_in_short
    return Report(folder, report_fingerprint, summary, of_pretrained, *of_steps)


@contextmanager
def local(report: Report) -> Iterator[Path]:
    """A local folder with the report's files. It exists until the block ends."""
    if report.folder.is_local:
        yield report.folder.local_path()
        return
    with tempfile.TemporaryDirectory() as folder:
        copy(report, Path(folder))
        yield Path(folder)


def copy(report: Report, target: Path) -> None:
    """Copy the report's files into a local folder."""
    for name, _ in report.folder.files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if report.folder.is_local:
            shutil.copyfile(report.folder.local_path() / name, target / name)
        else:
            (target / name).write_bytes(report.folder.read_bytes(name))
