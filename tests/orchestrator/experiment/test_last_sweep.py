"""The last sweep of a store: read back unchanged, and used by `status`, `report` and `sync`."""

from pathlib import Path

import pytest
import yaml

import synthetic
from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.errors import StoreError
from orchestrator.experiment import last_sweep, load, model
from orchestrator.plan import build
from orchestrator.run import sweep
from orchestrator.store.store import Store


def recalled(root: Folder, *overrides: str) -> model.Experiment:
    return load.load("last", text=last_sweep.recall(root), overrides=overrides)


def fingerprints(of: model.Experiment) -> dict[str, str]:
    steps = build.build(of).steps
    return {address: step.fingerprint for address, step in steps.items()}


@pytest.mark.parametrize("name", load.bundled())
def test_what_is_remembered_plans_the_same_steps(name: str, tmp_path: Path) -> None:
    asked, root = load.load(name), Folder.of(tmp_path)
    last_sweep.remember(asked, root)
    back = recalled(root)
    assert fingerprints(back) == fingerprints(asked)
    assert back.storage == str(tmp_path)


def test_folders_are_found_from_anywhere_and_buckets_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    last_sweep.remember(load.load(overrides=["data=mine"]), Folder.of("here"))
    assert recalled(Folder.of("here")).data == str(tmp_path / "mine")
    last_sweep.remember(load.load(overrides=["data='s3://b/mine'"]), Folder.of("here"))
    assert recalled(Folder.of("here")).data == "s3://b/mine"


def test_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = load.load("demo").model_dump(mode="json")
    mine["corpus"] = {"name": "mine", "reader": {"kind": "imagefolder", "path": "images"}}
    mine["noise"] = {"name": "g", "levels": [0], "kind": "groups", "file": "groups.csv"}
    files = {"kind": "features", "name": "given", "files": {"digits": "d.parquet"}}
    mine["encoders"] = [{"kind": "file", "name": "e", "file": "w.pth", "model": "resnet18"}, files]
    asked = load.load("mine", text=yaml.safe_dump(mine))
    (tmp_path / "started").mkdir()
    monkeypatch.chdir(tmp_path / "started")
    for name in ("groups.csv", "w.pth", "d.parquet"):
        Path(name).write_text("zero,round\n")
    last_sweep.remember(asked, Folder.of("../store"))
    monkeypatch.chdir(tmp_path)
    back = recalled(Folder.of("store")).model_dump(mode="json")
    found = [
        back["corpus"]["reader"]["path"],
        back["noise"]["file"],
        back["encoders"][0]["file"],
        back["encoders"][1]["files"]["digits"],
    ]
    names = ("images", "groups.csv", "w.pth", "d.parquet")
    assert found == [str(tmp_path / "started" / name) for name in names]


def test_a_password_is_not_kept_and_a_plain_server_is(tmp_path: Path) -> None:
    root = Folder.of(tmp_path)
    last_sweep.remember(load.load(overrides=["tracking.uri='http://me:tr0ub4dor@host:5000'"]), root)
    assert "tr0ub4dor" not in (last_sweep.recall(root) or "")
    assert recalled(root).tracking.uri is None
    last_sweep.remember(load.load(overrides=["tracking.uri='http://host:5000'"]), root)
    assert recalled(root).tracking.uri == "http://host:5000"


def test_a_finished_sweep_is_shown_as_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = build.build(
        load.load(
            noise="0,30",
            overrides=["name=mine", "tasks=[digits]", "tracking.enabled=false", "storage=here"],
        )
    )
    store = Store(Folder.of("here"))
    synthetic.fill(plan, store)
    sweep.run(plan, store)
    assert _run(["status", "--storage", "here"]) == 0
    first, counts, *_ = capsys.readouterr().out.splitlines()
    assert first == f"mine in {tmp_path}/here"
    assert "missing" not in counts
    assert _run(["report", "--set", "storage=here"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/here/report/mine/report.html\n"
    assert _run(["status", "--storage", "here", "--noise", "0,10"]) == 0
    assert "missing" in capsys.readouterr().out.splitlines()[1]
    assert _run(["status", "demo", "--storage", "here"]) == 0
    assert capsys.readouterr().out.startswith("demo in ")


def test_a_store_that_moved_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    last_sweep.remember(load.load(overrides=["name=mine"]), Folder.of("before"))
    (tmp_path / "before").rename(tmp_path / "nml-store")
    assert _run(["status"]) == 0
    assert capsys.readouterr().out.startswith(f"mine in {tmp_path}/nml-store\n")


@pytest.mark.parametrize(
    "broken", ["orchestrator.experiment.last_sweep.recall", "orchestrator.plan.assess.living"]
)
def test_a_store_that_cannot_be_read_is_one_sentence(
    broken: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def silent(root: Folder) -> None:
        raise OSError("Could not connect to server")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(broken, silent)
    assert _run(["status"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "nml-store cannot be read (Could not connect to server); check" in message


@pytest.mark.parametrize("verb", ["plan", "status"])
@pytest.mark.parametrize("storage", ["ftp://x/y", "s3://", "s3://user:hunter2@bucket/store"])
def test_a_storage_of_an_unknown_kind_is_the_users_mistake(
    verb: str, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run([verb, "--storage", storage]) == 2
    message = capsys.readouterr().err
    assert "cannot be read" in message
    assert "name a folder, s3://BUCKET/FOLDER" in message
    assert "hunter2" not in message


def test_a_password_in_a_storage_that_cannot_be_written_is_not_shown() -> None:
    with pytest.raises(StoreError, match=r"cannot be written") as caught:
        Store(Folder("s3://me:hunter2@bucket/x")).prepare()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["2024", "true", "{a}", "\N{SNOWMAN}\N{PERSON WITH FOLDED HANDS}"])
def test_a_storage_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    last_sweep.remember(load.load(overrides=["name=mine"]), Folder.of(name))
    assert _run(["status", "--storage", name]) == 0
    assert capsys.readouterr().out.startswith(f"mine in {tmp_path}/{name}\n")
    assert _run(["plan", "demo", "--storage", name]) == 0


def test_one_of_another_version_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Folder.of("nml-store").write_bytes(last_sweep.NAME, yaml.safe_dump({"nmae": "x"}).encode())
    assert _run(["status"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "nml-store/last-sweep.yaml: " in message
