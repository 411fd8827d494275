"""The mirror in MLflow: a real database, a real server, and nothing logged twice."""

import dataclasses
import importlib.util
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from jobs.contract import Outcome, StageError
from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.errors import TrackingError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.step.step import Step
from orchestrator.store import provenance
from orchestrator.store.manifest import Manifest
from orchestrator.store.store import Store
from orchestrator.tracking import naming
from orchestrator.tracking.mirror import Tracker, sync
from orchestrator.tracking.runs import RunViews, SweepRecord, group_of, groups, step_unit
from orchestrator.tracking.server import resolve_uri

pytestmark = pytest.mark.slow

POINTS = (("id/lp/accuracy", 0.0, 90.0), ("id/lp/accuracy", 10.0, 85.0))


@pytest.fixture
def small() -> Plan:
    overrides = ["tuning.fractions=[100]", "tasks=[digits]"]
    return build.build(load.load(noise="0,10", seeds="0", overrides=overrides))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(Folder.of(tmp_path / "store"))
    made.prepare()
    return made


def commit(store: Store, step: Step, accuracy: float = 50.0) -> Manifest:
    output = store.begin(step).output
    output.write_bytes("made.txt", step.address.encode())
    if step.kind == "tune":
        names = ("task", "domain", "method", "fraction", "tuning_seed")
        row = {name: step.labels[name] for name in names}
        output.write_table(
            "cell.parquet", pa.Table.from_pylist([{**row, "test_accuracy": accuracy}])
        )
    moment = provenance.now()
    facts = {"started": moment, "finished": moment, "seconds": 1.0}
    return store.commit(step, Outcome({"rows": 3}, {"metric": 0.5}), facts)


def record(tmp_path: Path, points: tuple[tuple[str, float, float], ...] = POINTS) -> SweepRecord:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text("<h1>report</h1>")
    return SweepRecord(str(hash(points)), points, folder, "done")


@cache
def empty_database() -> bytes:
    """One without runs. MLflow takes a second to make it."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def database(tmp_path: Path) -> str:
    file = tmp_path / "mlflow.db"
    if not file.exists():
        file.write_bytes(empty_database())
    return f"sqlite:///{file}"


def mirror_all(made: Plan, store: Store, uri: str, messages: list[str], **words: object) -> Tracker:
    tracker = Tracker(made, store, uri, say=messages.append)
    for step in made.steps.values():
        if store.manifest(step.address) is None:
            tracker.commit(step, commit(store, step))
    return tracker


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("demo")
    return list(client.search_runs([found.experiment_id], max_results=1000))


def run_addresses(made: Plan) -> list[str]:
    """Addresses of a plan's runs: one for each step; the cells of an encoder and method are one.

    The last is that of the method in POINTS.
    """
    steps = [step.address for step in made.steps.values() if step.kind != "tune"]
    return [*steps, *groups(made), f"sweep/{made.experiment.name}", "sweep/demo/lp"]


def addresses(uri: str) -> Counter[str]:
    return Counter(run.data.tags["nml.address"] for run in runs_of(uri))


def test_a_sweep_is_one_parent_with_a_child_for_each_step(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    assert mirror_all(small, store, uri, []).close(record(tmp_path))
    assert addresses(uri) == Counter(run_addresses(small))
    runs = {run.data.tags["nml.address"]: run for run in runs_of(uri)}
    parent = runs["sweep/demo"]
    for address, step in small.steps.items():
        if step.kind == "tune":
            continue
        tags = runs[address].data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["nml.kind"] == step.kind
        assert tags["nml.fingerprint"] == step.fingerprint
        assert tags["nml.status"] == "done"
        assert runs[address].info.status == "FINISHED"
        assert runs[address].data.metrics["metric"] == 0.5


def test_the_cells_of_an_encoder_and_method_are_one_run(store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    overrides = ["tuning.fractions=[10,100]", "tuning.seeds=[0,1]"]
    made = build.build(load.load(noise="5,10", seeds="0", overrides=overrides))
    tracker = Tracker(made, store, uri)
    for step in made.steps.values():
        accuracy = (
            float(step.labels["fraction"]) / 2 + float(step.labels["tuning_seed"])
            if (step.kind == "tune")
            else 0.0
        )
        tracker.commit(step, commit(store, step, accuracy))
    assert tracker.close(record(tmp_path))
    cells = [run for run in runs_of(uri) if run.data.tags["nml.kind"] == "tune"]
    methods = len(made.experiment.tuning.methods)
    assert len(cells) == 2 * methods
    assert len({frozenset(run.data.metrics) for run in cells}) == 1, "metrics do not compare"
    run = next(r for r in cells if r.data.tags["nml.address"].endswith("noise=5/seed=0/lp"))
    assert run.info.run_name == "tune noise=5/seed=0/lp"
    assert (run.data.params["noise"], run.data.params["method"]) == ("5", "lp")
    client = MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(run.info.run_id, "digits/accuracy")
    assert {(point.step, point.value) for point in history} == {(10, 5.5), (100, 50.5)}
    table = client.download_artifacts(run.info.run_id, "cells.csv", str(tmp_path))
    planned = [s for s in made.of_kind("tune") if s.labels["method"] == "lp"]
    assert len(Path(table).read_text().splitlines()) == 1 + len(planned) / 2


def test_shares_of_less_than_a_percent_have_steps_of_their_own(
    store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    overrides = ["tuning.fractions=[0.5,1,100]", "tasks=[digits]"]
    made = build.build(load.load(noise="10", seeds="0", overrides=overrides))
    tracker = Tracker(made, store, uri)
    for step in made.steps.values():
        tracker.commit(step, commit(store, step, float(step.labels.get("fraction", 0))))
    assert tracker.close(record(tmp_path))
    run = next(r for r in runs_of(uri) if r.data.tags["nml.address"].endswith("seed=0/lp"))
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "digits/accuracy")
    assert {(p.step, p.value) for p in history} == {(5, 0.5), (10, 1.0), (1000, 100.0)}
    assert run.data.tags["nml.step_unit"] == "1/10 percent"


def test_later_cells_replace_their_groups_run(store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    overrides = ["tuning.fractions=[10,100]", "tasks=[digits]"]
    made = build.build(load.load(noise="10", seeds="0", overrides=overrides))
    *most, last = made.steps.values()
    for step in most:
        commit(store, step)
    assert Tracker(made, store, uri).close(record(tmp_path))

    def of_last() -> Run:
        return next(r for r in runs_of(uri) if r.data.tags["nml.address"] == group_of(made, last))

    assert of_last().data.tags["nml.cells"] == "1 of 2"
    commit(store, last)
    assert sync(made, store, uri, record(tmp_path)) == 1
    assert of_last().data.tags["nml.cells"] == "2 of 2"
    assert addresses(uri) == Counter(run_addresses(made))


def test_runs_say_which_corpus_and_which_encoder_they_read(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    runs = {run.data.tags["nml.address"]: run for run in runs_of(uri)}
    encoder = small.of_kind("pretrain")[1]
    corpus = small.steps["corpus/digits"]
    for address in (encoder.address, *groups(small)):
        (read,) = runs[address].inputs.dataset_inputs
        assert (read.dataset.name, read.dataset.digest) == ("digits", corpus.fingerprint[:12])
        assert str(store.root.uri) in read.dataset.source
    client = MlflowClient(tracking_uri=uri)
    (model,) = client.get_run(runs[encoder.address].info.run_id).outputs.model_outputs
    readers = [s for s in small.of_kind("features") if s.inputs["encoder"] == encoder.address]
    for step in readers:
        (used,) = client.get_run(runs[step.address].info.run_id).inputs.model_inputs
        assert used.model_id == model.model_id


def test_the_sweeps_description_is_the_reports_verdicts(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    made = record(tmp_path)
    (made.folder / "verdicts.md").write_text("**undecided**: one seed\n" + "more\n" * 3000)
    mirror_all(small, store, uri, []).close(made)
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("**undecided**: one seed\n")
    assert note.endswith("more\n\n...")
    assert 7000 < len(note) < 8000
    above = MlflowClient(tracking_uri=uri).get_experiment(parent.info.experiment_id)
    assert note.startswith(above.tags["mlflow.note.content"].removesuffix("\n\n..."))
    assert 4500 < len(above.tags["mlflow.note.content"]) < 5000, "the most of older servers"


def test_a_defect_of_our_own_is_not_reported_as_a_dead_server(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    step = small.of_kind("tune")[0]
    for other in small.steps.values():
        commit(store, other)
    output = store.begin(step).output
    output.write_bytes("cell.parquet", b"not a table")
    store.commit(step, Outcome({}, {}), {"finished": provenance.now()})
    messages: list[str] = []
    tracker = Tracker(small, store, database(tmp_path), say=messages.append)
    assert not tracker.close(record(tmp_path))
    assert len(messages) == 1
    assert "does not answer" not in messages[0]
    with pytest.raises(TrackingError, match="nml-orch --debug sync"):
        sync(small, store, database(tmp_path), record(tmp_path))


def test_a_damaged_file_in_the_store_is_not_reported_as_a_dead_server(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    for step in small.steps.values():
        commit(store, step)
    damaged = small.of_kind("tune")[0].address
    table = store.output(damaged).read_table("cell.parquet")
    store.output(damaged).write_table("cell.parquet", table, compression="none")
    messages: list[str] = []
    tracker = Tracker(small, store, database(tmp_path), say=messages.append)
    assert not tracker.close(record(tmp_path))
    assert messages[0].startswith(f"cell.parquet of {damaged} is not the file that the step wrote")
    with pytest.raises(StageError, match=f"--redo {damaged}"):
        sync(small, store, database(tmp_path), record(tmp_path))


def test_the_parents_metrics_have_the_noise_level_as_their_step(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    client = MlflowClient(tracking_uri=uri)
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    history = client.get_metric_history(parent.info.run_id, "id_accuracy/lp")
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


def test_a_new_level_adds_only_its_point(small: Plan, store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    more = (*POINTS, ("id/lp/accuracy", 20.0, 80.0))
    assert Tracker(small, store, uri).close(record(tmp_path, more))
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    history = MlflowClient(tracking_uri=uri).get_metric_history(
        parent.info.run_id, "id_accuracy/lp"
    )
    assert [(p.step, p.value) for p in history] == [(0, 90.0), (10, 85.0), (20, 80.0)]


def test_a_removed_metric_is_not_shown(small: Plan, store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    gone = (*POINTS, ("id/mlp/accuracy", 0.0, 80.0))
    mirror_all(small, store, uri, []).close(record(tmp_path, gone))
    assert Tracker(small, store, uri).close(record(tmp_path))
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    assert set(parent.data.metrics) == {"id_accuracy/lp"}


def test_points_that_changed_replace_the_sweeps_run(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    changed = record(tmp_path, (("id/lp/accuracy", 0.0, 91.0),))
    assert Tracker(small, store, uri).close(changed)
    assert addresses(uri) == Counter(run_addresses(small))
    parent = next(run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    assert parent.data.metrics == {"id_accuracy/lp": 91.0}
    children = {run.data.tags.get("mlflow.parentRunId") for run in runs_of(uri)} - {None}
    assert children == {parent.info.run_id}


def test_two_stores_may_share_a_server(small: Plan, store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    other = Store(Folder.of(tmp_path / "other"))
    other.prepare()
    mirror_all(small, store, uri, []).close(record(tmp_path))
    mirror_all(small, other, uri, []).close(record(tmp_path))
    assert set(addresses(uri).values()) == {2}


@pytest.mark.skipif(
    importlib.util.find_spec("psycopg") is not None, reason="the driver is installed"
)
def test_a_database_without_its_driver_is_reported_as_such(
    small: Plan, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "postgresql://me:tr0ub4dor@127.0.0.1/mlflow"
    messages: list[str] = []
    assert not mirror_all(small, store, uri, messages).close(record(tmp_path))
    assert len(messages) == 1
    with pytest.raises(TrackingError) as raised:
        sync(small, store, uri, record(tmp_path))
    assert _run(["ui", "--uri", uri]) == 2
    for message in (messages[0], str(raised.value), capsys.readouterr().err):
        assert "cannot open postgresql://***@127.0.0.1/mlflow here" in message
        assert "No module named 'psycopg" in message
        assert "defect" not in message


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


def test_the_methods_lines_lie_in_one_chart(small: Plan, store: Store, tmp_path: Path) -> None:
    """A page draws the metric of one name of several runs in one chart, a line for each run."""
    uri = database(tmp_path)
    both = (*POINTS, ("id/mlp/accuracy", 0.0, 80.0), ("id/mlp/accuracy", 10.0, 70.0))
    mirror_all(small, store, uri, []).close(record(tmp_path, both))
    methods = {r.info.run_name: r for r in runs_of(uri) if r.data.tags["nml.kind"] == "method"}
    assert methods.keys() == {"lp", "mlp"}
    client = MlflowClient(tracking_uri=uri)
    for name, values in (("lp", [90.0, 85.0]), ("mlp", [80.0, 70.0])):
        run = methods[name]
        assert "mlflow.parentRunId" not in run.data.tags, "a nested run is drawn once unfolded"
        history = client.get_metric_history(run.info.run_id, "id_accuracy")
        assert [(point.step, point.value) for point in history] == [
            *zip((0, 10), values, strict=True)
        ]


def test_a_method_that_is_gone_has_no_line(small: Plan, store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    gone = (*POINTS, ("id/mlp/accuracy", 0.0, 80.0))
    mirror_all(small, store, uri, []).close(record(tmp_path, gone))
    assert Tracker(small, store, uri).close(record(tmp_path))
    assert addresses(uri) == Counter(run_addresses(small))


def test_the_sweeps_run_has_the_experiments_parameters_while_it_runs(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    tracker = mirror_all(small, store, uri, [])
    tracker.close(None)  # stopped: no report
    (parent,) = (run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    params = parent.data.params
    assert params["noise.levels"] == "0, 10"
    assert params["pretrain.recipe.model"] == "resnet18"
    assert params["tuning.methods"].startswith("lp, mlp")
    assert len(params) <= 100


def test_other_parameters_make_a_new_sweeps_run(small: Plan, store: Store, tmp_path: Path) -> None:
    uri = database(tmp_path)
    mirror_all(small, store, uri, []).close(record(tmp_path))
    more = build.build(
        load.load(noise="0,10,20", overrides=["tuning.fractions=[100]", "tasks=[digits]"])
    )
    Tracker(more, store, uri).close(record(tmp_path))
    (parent,) = (run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    assert parent.data.params["noise.levels"] == "0, 10, 20"
    assert parent.data.metrics == {"id_accuracy/lp": 85.0}
    children = {run.data.tags.get("mlflow.parentRunId") for run in runs_of(uri)} - {None}
    assert children == {parent.info.run_id}


def test_the_sweeps_description_begins_with_the_answer(
    small: Plan, store: Store, tmp_path: Path
) -> None:
    uri = database(tmp_path)
    told = dataclasses.replace(record(tmp_path), answer="Accuracy falls by 5 points.")
    mirror_all(small, store, uri, []).close(told)
    (parent,) = (run for run in runs_of(uri) if run.data.tags["nml.kind"] == "sweep")
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("**Accuracy falls by 5 points.**")


def test_a_pre_training_runs_curves_come_before_its_single_numbers(
    small: Plan, store: Store
) -> None:
    """A page sorts its sections by name; a metric without a prefix would come last."""
    step = small.of_kind("pretrain")[0]
    for before in (small.of_kind("corpus")[0], *small.of_kind("noise")):
        commit(store, before)
    output = store.begin(step).output
    points = [{"metric": "val_accuracy", "step": at, "value": 50.0 + at} for at in (1, 2)]
    output.write_table("curves.parquet", pa.Table.from_pylist(points))
    facts = {"started": provenance.now(), "finished": provenance.now(), "seconds": 1.0}
    manifest = store.commit(step, Outcome({}, {"pretrain/val_accuracy": 52.0}), facts)
    names = [name for name, _, _ in RunViews(small, store).step(step, manifest).points]
    sections = [name.partition("/")[0] for name in names]
    assert sections == ["curve", "curve", "pretrain", "pretrain"]
    assert sections == sorted(sections)
    assert "pretrain/seconds" in names


def test_a_run_is_called_as_the_store_spells_it(small: Plan) -> None:
    names = {naming.of_step(step) for step in small.steps.values() if step.kind != "tune"}
    assert {"corpus/digits", "pretrain noise=10/seed=0"} <= names
    assert "features noise=0/seed=0/digits" in names
    assert naming.of_cells(small.of_kind("tune")[0]) == "tune noise=0/seed=0/lp"
