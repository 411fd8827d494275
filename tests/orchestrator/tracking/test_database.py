"""MLflow's database file: at any path, with two first processes, damaged, locked, altered."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.storage.folder import Folder
from orchestrator.errors import TrackingError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.store.store import Store
from orchestrator.tracking import sqlite
from orchestrator.tracking.mirror import Tracker, sync
from orchestrator.tracking.pages import pages
from orchestrator.tracking.runs import SweepRecord
from orchestrator.tracking.server import resolve_uri
from synthetic import fill

pytestmark = pytest.mark.slow

AWKWARD = "a %20b %2F?c#d \u00e9 '\" :x &+=;"


@pytest.fixture
def small() -> Plan:
    return build.build(
        load.load(noise="10", seeds="0", overrides=["tuning.fractions=[100]", "tasks=[digits]"])
    )


@pytest.fixture
def store(small: Plan, tmp_path: Path) -> Store:
    made = Store(Folder.of(tmp_path / "store"))
    fill(small, made)
    return made


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow. Making one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    pages(sqlite.uri_of(path), "")
    return path


@pytest.fixture
def database(empty: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty, tmp_path))


def record(tmp_path: Path) -> SweepRecord:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text("<h1>report</h1>")
    return SweepRecord("f", (("id/lp/accuracy", 10.0, 85.0),), folder, "done")


def test_a_database_and_its_artifacts_are_where_the_user_works(
    small: Plan, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / AWKWARD
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = resolve_uri(None)
    assert sqlite.path_of(uri) == folder / "mlflow.db"
    before = set(tmp_path.iterdir())
    assert sync(small, store, uri, record(tmp_path)) > 0
    assert set(tmp_path.iterdir()) == {*before, tmp_path / "files"}, "a folder of an encoded name"
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    (kept,) = folder.rglob("report.html")
    assert kept.is_relative_to(folder / "mlartifacts/demo")
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("demo")
    (parent,) = client.search_runs([found.experiment_id], "tags.`nml.kind` = 'sweep'")
    copied = client.download_artifacts(parent.info.run_id, "report.html", str(tmp_path))
    assert Path(copied).read_text() == "<h1>report</h1>"


@pytest.mark.parametrize(
    "name", [AWKWARD, "plain", "50%", "%41", "what?", "\u6570\u636e", "'", "x" * 200]
)
def test_a_uri_names_the_path_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / f"{name[:50]}.db"
    path.parent.mkdir()
    assert sqlite.path_of(sqlite.uri_of(path)) == path
    assert sqlite.absolute(sqlite.uri_of(path)) == sqlite.uri_of(path)
    sqlite.check(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE x (y)")
    sqlite.check(path)


def test_options_of_a_relative_uri_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite.absolute("sqlite:///m.db?timeout=9") == f"sqlite:///{tmp_path}/m.db?timeout=9"
    for other in ("sqlite://", "sqlite:///:memory:", "http://host:5000", "postgresql://host/x"):
        assert sqlite.absolute(other) == other


@pytest.mark.parametrize("really", [False, True], ids=["in the trash", "really gone"])
def test_a_deleted_sweep_is_made_again_with_its_children_below_it(
    small: Plan, store: Store, tmp_path: Path, database: Path, really: bool
) -> None:
    uri = sqlite.uri_of(database)
    count = sync(small, store, uri, record(tmp_path))
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`nml.kind` = 'sweep'")
    client.delete_run(parent.info.run_id)
    if really:
        client._tracking_client.store._hard_delete_run(parent.info.run_id)
    assert sync(small, store, uri, record(tmp_path)) == 0
    (again,) = client.search_runs([experiment], "tags.`nml.kind` = 'sweep'")
    assert again.info.run_id != parent.info.run_id
    assert again.data.metrics == {"id_accuracy/lp": 85.0}
    beside = "tags.`nml.kind` != 'sweep' and tags.`nml.kind` != 'method'"
    children = client.search_runs([experiment], beside)
    assert len(children) == count
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {again.info.run_id}


def test_a_sweep_deleted_while_it_runs_is_made_again_at_its_end(
    small: Plan, store: Store, tmp_path: Path, database: Path
) -> None:
    uri = sqlite.uri_of(database)
    tracker = Tracker(small, store, uri)
    step = small.steps["corpus/digits"]
    manifest = store.manifest(step.address)
    assert manifest is not None
    tracker.commit(step, manifest)
    while tracker._pending or not tracker._mirror:
        time.sleep(0.05)
    client = MlflowClient(tracking_uri=uri)
    client.delete_run(tracker._mirror.parent_id)
    assert tracker.close(record(tmp_path))
    experiment = client.get_experiment_by_name("demo").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`nml.kind` = 'sweep'")
    (child,) = client.search_runs([experiment], "tags.`nml.kind` = 'corpus'")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


OPEN = """
import sys
from orchestrator.tracking.mlflow import Mirror
mirror = Mirror(sys.argv[1], "demo", sys.argv[2])
mirror.open()
"""


@pytest.mark.slow
def test_processes_that_are_first_at_once_make_one_database(tmp_path: Path) -> None:
    uri = sqlite.uri_of(tmp_path / "mlflow.db")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, uri, store], stderr=subprocess.PIPE, text=True
        )
        for store in ("one", "two")
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [
        ("", 0)
    ] * 2
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("demo").experiment_id
    assert len(client.search_runs([experiment])) == 2


def test_a_locked_database_is_told_as_such_and_written_later(
    small: Plan, store: Store, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCKED_SECONDS", 0.1)
    uri = sqlite.uri_of(database)
    messages: list[str] = []
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker = Tracker(small, store, uri, say=messages.append)
        assert not tracker.close(record(tmp_path))
        with pytest.raises(TrackingError, match="is locked by another program; end that program"):
            sync(small, store, uri, record(tmp_path))
    assert len(messages) == 1
    assert "is locked by another program" in messages[0]
    assert messages[0].endswith("`nml-orch sync` writes what is missing")
    assert sync(small, store, uri, record(tmp_path)) > 0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"this is not a database, " * 100, "is not an SQLite file; move it away"),
        (b"\x00", "is not an SQLite file; move it away"),
        (b"SQLite format 3\x00" + b"?" * 4096, "is damaged .*; move it away"),
        (None, "cannot be opened .*; correct that"),
    ],
)
def test_a_file_that_is_no_database_is_told_as_such(
    small: Plan, store: Store, tmp_path: Path, content: bytes | None, what: str
) -> None:
    path = tmp_path / "mlflow.db"
    path.mkdir() if content is None else path.write_bytes(content)
    uri = sqlite.uri_of(path)
    messages: list[str] = []
    assert not Tracker(small, store, uri, say=messages.append).close(record(tmp_path))
    assert len(messages) == 1
    with pytest.raises(TrackingError, match=f"^MLflow's database {path} {what}") as raised:
        sync(small, store, uri, record(tmp_path))
    assert messages[0].startswith(f"{raised.value}; the sweep continues")
    assert "\n" not in messages[0]
    if content is not None:
        assert path.read_bytes() == content


def test_a_pipe_in_the_databases_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be opened \(it is a FIFO"):
        sqlite.check(tmp_path / "mlflow.db")
