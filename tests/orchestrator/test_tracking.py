"""MLflow as a mirror: a real database, a real server, and nothing twice."""

from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from jobs.contract import Outcome
from jobs.place import Place
from orchestrator import experiment, plan, provenance
from orchestrator.mirror import Tracker, sync
from orchestrator.plan import Plan, Step
from orchestrator.store import Manifest, Store
from orchestrator.tracking import SweepRecord, resolve_uri, step_unit

POINTS = (("id/lp/accuracy", 0.0, 90.0), ("id/lp/accuracy", 10.0, 85.0))


@pytest.fixture
def small() -> Plan:
    overrides = ["tuning.fractions=[100]", "tasks=[digits]"]
    return plan.build(experiment.load(noise="0,10", overrides=overrides))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(Place.of(tmp_path / "store"))
    made.prepare()
    return made


def commit(store: Store, step: Step) -> Manifest:
    store.begin(step).output.write_bytes("made.txt", step.address.encode())
    moment = provenance.now()
    facts = {"started": moment, "finished": moment, "seconds": 1.0}
    return store.commit(step, Outcome({"rows": 3}, {"metric": 0.5}), facts)


def record(tmp_path: Path, points: tuple[tuple[str, float, float], ...] = POINTS) -> SweepRecord:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text("<h1>report</h1>")
    return SweepRecord(str(hash(points)), points, folder, "done")


def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


def mirror_all(made: Plan, store: Store, uri: str, said: list[str], **words: object) -> Tracker:
    tracker = Tracker(made, store, uri, say=said.append)
    for step in made.steps.values():
        if store.manifest(step.address) is None:
            tracker.commit(step, commit(store, step))
    return tracker


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("demo")
    return list(client.search_runs([found.experiment_id], max_results=1000))


def addresses(uri: str) -> Counter[str]:
    return Counter(run.data.tags["nml.address"] for run in runs_of(uri))


def test_a_sweep_is_one_parent_and_one_child_a_step(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    assert mirror_all(small, store, uri, []).close(record(tmp_path))
    assert addresses(uri) == Counter([*small.steps, "sweep/demo"])
    runs = {run.data.tags["nml.address"]: run for run in runs_of(uri)}
    parent = runs["sweep/demo"]
    for address, step in small.steps.items():
        tags = runs[address].data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["nml.kind"] == step.kind
        assert tags["nml.fingerprint"] == step.fingerprint
        assert tags["nml.status"] == "done"
        assert runs[address].info.status == "FINISHED"
        assert runs[address].data.metrics["metric"] == 0.5
    cell = runs[small.of_kind("tune")[0].address].data.tags
    assert (cell["nml.noise"], cell["nml.seed"]) == ("0", "0")
    assert (cell["nml.task"], cell["nml.method"]) == ("digits", "lp")


def test_the_parents_metrics_have_the_noise_level_as_their_step(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    client = MlflowClient(tracking_uri=uri)
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    history = client.get_metric_history(parent.info.run_id, "id/lp/accuracy")
    assert {(point.step, point.value) for point in history} == {(0, 90.0), (10, 85.0)}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["report.html"]


def test_mirroring_again_makes_no_second_run_and_no_second_point(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    before = addresses(uri)
    assert Tracker(small, store, uri).close(record(tmp_path))
    assert sync(small, store, uri, record(tmp_path)) == 0
    assert addresses(uri) == before


def test_points_that_changed_replace_the_sweeps_run(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    changed = record(tmp_path, (("id/lp/accuracy", 0.0, 91.0),))
    assert Tracker(small, store, uri).close(changed)
    assert addresses(uri) == Counter([*small.steps, "sweep/demo"])
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    assert parent.data.metrics == {"id/lp/accuracy": 91.0}
    children = {run.data.tags.get("mlflow.parentRunId") for run in runs_of(uri)} - {None}
    assert children == {parent.info.run_id}


def test_two_stores_may_share_a_server(small: Plan, store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    other = Store(Place.of(tmp_path / "other"))
    other.prepare()
    mirror_all(small, store, uri, []).close(record(tmp_path))
    mirror_all(small, other, uri, []).close(record(tmp_path))
    assert set(addresses(uri).values()) == {2}


def test_a_tracking_store_that_cannot_be_opened_costs_one_line(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is not a database, " * 100)
    said: list[str] = []
    assert not mirror_all(small, store, database(tmp_path), said).close(record(tmp_path))
    assert len(said) == 1
    assert "nml-orch sync" in said[0]


def test_fractional_levels_never_share_a_step() -> None:
    assert step_unit([0, 5, 10]) == ("percent", 1)
    assert step_unit([0, 2.5]) == ("1/10 percent", 10)
    assert step_unit([0.25, 2.5]) == ("1/100 percent", 100)


def test_the_environment_names_the_server_unless_the_experiment_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert resolve_uri(None) == "http://127.0.0.1:1"
    assert resolve_uri("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
