"""What a message about a store tells its user to do works when it is done."""

import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import synthetic
from commands import Run
from followed import SMALL, Case, Cases, also, delete, say
from jobs.contract import StageError, Work
from jobs.storage.folder import Folder
from orchestrator.errors import ReplacedError, StoreError
from orchestrator.experiment import last_sweep, load, registered
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepStatus
from orchestrator.run.opening import Opener
from orchestrator.store import register
from orchestrator.store.lease import Leases

CASES = Cases()
case = CASES.case
WHOLE = "done, 0 "
REPORT = "report/demo/report.html\n"
IDENTITY = '{"format": 1, "id": "0123456789abcdef"}'


@case(
    r"(?P<meant>/\S+/corpus/digits)/manifest\.json cannot be used .*; delete its folder",
    delete,
    "1 missing",
)
def a_damaged_manifest(case: Case) -> None:
    case.store()
    case.write("nml-store/corpus/digits/manifest.json", "{")
    case.say("status")


@case(r"(?P<meant>/\S+/store\.json) cannot be used .*; delete it", delete, REPORT)
def a_damaged_identity(case: Case) -> None:
    case.store()
    case.write("nml-store/store.json", "[]")
    case.say("report")


@case(
    r"reads 1; name another folder with --set (?P<meant>storage)=PATH",
    say("report --set storage=a"),
    "a/" + REPORT,
)
def a_store_of_another_format(case: Case) -> None:
    case.store("a")
    case.store()
    case.write("nml-store/store.json", IDENTITY.replace("1", "2", 1))
    case.say("report")


@case(
    r"cannot be written .*; name a folder .* with --set storage=PATH",
    say("report --set storage=a"),
    "a/" + REPORT,
)
def a_storage_that_is_a_file(case: Case) -> None:
    case.store("a")
    case.write("f")
    case.say("report demo --set storage=f/store")


@case(
    r"name a folder, s3://\S+ or gs://\S+ with (?P<meant>--storage)",
    say("status {meant} a"),
    "done",
)
def a_storage_of_an_unknown_kind(case: Case) -> None:
    case.store("a")
    case.say("status --storage ftp://x/y")


@case(
    r"cannot be read .*; check that it is reachable and that you may read it",
    lambda case, found: (case.folder / "f").unlink() or (case.store("f/s") and None),
    "done",
)
def a_storage_below_a_file(case: Case) -> None:
    case.write("f")
    case.say("status --storage f/s")


@case(r"name the experiment file in the command", say("status demo"), "demo in")
def a_damaged_last_sweep(case: Case) -> None:
    case.store()
    case.write("nml-store/last-sweep.yaml", "[")
    case.say("status")


@case(r"(?P<meant>\S+/last-sweep\.yaml): .*, or delete last-sweep\.yaml", delete, "demo in")
def a_damaged_last_sweep_that_is_deleted(case: Case) -> None:
    a_damaged_last_sweep(case)


@case(
    r"(?P<file>\S+) of (?P<step>tune/\S+) is not the file .* wrote .*; put the file back",
    lambda case, found: (
        shutil.move(case.folder / "kept", case.folder / "nml-store" / found["step"] / found["file"])
        and None
    ),
    REPORT,
)
def a_damaged_file_of_a_cell(case: Case) -> None:
    root = case.store().root.local_path()
    path = next(root.rglob("tune/**/cell.parquet"))
    shutil.copy(path, case.folder / "kept")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    case.say("report")


OTHER = "--set corpus.name=mine --set corpus.rows_per_shard=100"


@case(
    r"made from other settings: corpus/mine .* Give what changed a new name \(.*the corpus's",
    also("--set corpus.name=other"),
    "corpus/other is not built",
)
def a_corpus_of_other_settings(case: Case) -> None:
    case.store("nml-store", "corpus.name=mine")
    shutil.rmtree(case.folder / "nml-store/corpus/digits")
    case.say(f"corpus show demo {OTHER}")


def redo(case: Case, found: re.Match[str]) -> None:
    """Do what the forced build does: the corpus once more, with the new settings."""
    case.store("nml-store", "corpus.name=mine", "corpus.rows_per_shard=100")
    case.say(f"plan -v demo {OTHER}")


@case(
    r"(?P<meant>--force) \(of sweep, corpus build and noise build\)", redo, "done     corpus/mine\n"
)
def a_corpus_of_other_settings_that_is_built_again(case: Case) -> None:
    a_corpus_of_other_settings(case)


def entry(case: Case) -> Path:
    experiment = load.load(noise="0,10", seeds="0", overrides=[*SMALL, "claims=[sve-moves]"])
    root = case.store("nml-store", "claims=[sve-moves]").root
    registered.register(experiment, root, lambda: 0)
    (path,) = (root.local_path() / registered.FOLDER / "demo").iterdir()
    return path


@case(
    r"(?P<meant>/\S+\.json) cannot be used .*; put the file back from a copy",
    lambda case, found: shutil.move(case.folder / "kept", found["meant"]) and None,
    REPORT,
)
def a_damaged_registration(case: Case) -> None:
    path = entry(case)
    shutil.copy(path, case.folder / "kept")
    path.write_text("{}")
    case.say("report")


@case(r"(?P<meant>/\S+\.json) cannot be used .*, or delete it", delete, REPORT)
def a_damaged_registration_that_is_deleted(case: Case) -> None:
    a_damaged_registration(case)


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    CASES.check(name, tmp_path, run)


# -- two drivers on one store ----------------------------------------------------------------------


def plan(*overrides: str) -> Plan:
    return build.build(load.load(noise="0", seeds="0", overrides=[*SMALL, *overrides]))


LONGER = "pretrain.recipe.schedule.epochs=7"


def others(root: Path, made: Plan, redo: tuple[str, ...] = ()) -> str:
    """What another sweep on the store is told; nothing if it may run."""
    with closing(Leases(Folder.of(root), beat=3600)) as leases:
        try:
            register.enter(Folder.of(root), leases, made.steps, redo)
        except StoreError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("remedy", "root", "overrides"),
    [
        ("give what you changed a new name", "s", (LONGER, "pretrain.recipe.name=longer")),
        ("or name another --storage", "t", (LONGER,)),
        ("wait until it has ended", "", (LONGER,)),
    ],
)
def test_a_sweep_with_other_settings_has_three_ways(
    remedy: str, root: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    with closing(Leases(Folder.of(tmp_path / "s"), beat=3600)) as first:
        register.enter(Folder.of(tmp_path / "s"), first, plan().steps)
        assert remedy in others(tmp_path / "s", plan(LONGER))
        if root:
            assert others(tmp_path / root, plan(*overrides)) == ""
    assert others(tmp_path / (root or "s"), plan(*overrides)) == ""


def test_a_step_that_is_done_again_elsewhere_is_waited_for(tmp_path: Path) -> None:
    with closing(Leases(Folder.of(tmp_path), beat=3600)) as first:
        register.enter(Folder.of(tmp_path), first, plan().steps, ("corpus/digits",))
        assert "wait until it has ended" in others(tmp_path, plan())
    assert others(tmp_path, plan()) == ""


def test_the_difference_of_a_step_that_was_done_again_is_planned(tmp_path: Path, run: Run) -> None:
    case = Case(tmp_path)
    store, mine = case.store("nml-store", LONGER), plan()
    (step,) = mine.of_kind("pretrain")
    with pytest.raises(ReplacedError) as caught:
        store.planned(step.address, step.fingerprint)
    found = re.search(r"`nml-orch (?P<meant>plan)` with the same options", str(caught.value))
    assert found is not None
    sets = (word for one in SMALL for word in ("--set", one))
    code, output = run(tmp_path, found["meant"], "--noise", "0", "--seeds", "0", *sets)
    assert code == 0
    assert f"drift {step.address}\n  recipe.schedule.epochs: 7 -> " in output


def test_a_step_that_is_gone_can_be_done_again(tmp_path: Path) -> None:
    store, made = Case(tmp_path).store(), plan()
    (corpus,) = made.of_kind("corpus")
    seen = store.committed(corpus.address)
    (Path(seen.uri) / "manifest.json").unlink()
    for read in (lambda: store.committed(corpus.address), lambda: seen.read_bytes("rows.parquet")):
        with pytest.raises(
            (ReplacedError, StageError), match=r"when nothing else .*, run the same command again"
        ):
            read()
    synthetic.finish(store, corpus)
    store.committed(corpus.address)


def enter(root: Folder) -> None:
    with closing(Leases(root, beat=3600)) as leases:
        register.enter(root, leases, plan().steps)


def test_what_cannot_be_written_is_written_when_the_way_is_free(tmp_path: Path) -> None:
    experiment, root = load.load(), Folder.of(tmp_path)
    in_the_way: tuple[tuple[str, Callable[[], object]], ...] = (
        (".leases", lambda: Leases(root, beat=3600).acquire("corpus/digits")),
        (register.SWEEPS, lambda: enter(root)),
        (last_sweep.NAME, lambda: last_sweep.remember(experiment, root)),
        (
            registered.FOLDER,
            lambda: registered.register(plan("claims=[sve-moves]").experiment, root, lambda: 0),
        ),
    )
    for name, write in in_the_way:
        path = tmp_path / name
        path.mkdir() if "." in name[1:] else path.write_text("")
        with pytest.raises(StoreError, match=r"check that .*you may write") as caught:
            write()
        assert name in str(caught.value) or ".leases" in name
        path.rmdir() if path.is_dir() else path.unlink()
        write()


def test_a_plan_that_cannot_be_registered_is_registered_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as gone:
        gone.setattr(register, "living_files", lambda root, folder: set())
        gone.setattr(register.time, "sleep", lambda seconds: None)
        with pytest.raises(StoreError, match="you may write to it, and run the same command again"):
            enter(Folder.of(tmp_path))
    enter(Folder.of(tmp_path))


@pytest.mark.parametrize("way", ["give what changed a new name", "or redo it with --force"])
def test_a_step_that_another_sweep_has_done_is_renamed_or_redone(way: str, tmp_path: Path) -> None:
    store, mine = Case(tmp_path).store("nml-store", LONGER), plan()
    with closing(Leases(store.root, beat=3600)) as leases:

        def opened(plan: Plan, replace: dict[str, str]) -> object:
            opener = Opener(plan, store, leases, (), replace)
            return opener.open(opener.inputs(), plan.of_kind("pretrain")[0])

        refused = opened(mine, {})
        assert isinstance(refused, StepStatus)
        assert re.search(rf"schedule\.epochs.*, and those stand; .*{way}", refused.reason)
        if "name" in way:
            found = opened(plan("pretrain.recipe.name=other"), {})
        else:
            address = mine.of_kind("pretrain")[0].address
            found = opened(mine, {address: store.manifest(address).fingerprint})  # type: ignore[union-attr]
        assert isinstance(found, Work)


def test_a_report_that_another_command_writes_is_written_later(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.results.collect.PATIENCE", 0)
    with closing(Leases(Case(tmp_path).store().root, beat=3600)) as other:
        assert other.acquire("report/demo")
        code, message = run(tmp_path, "report")
    found = re.search(r"when it has ended, run `nml-orch (?P<meant>\w+)`", message)
    assert code
    assert found is not None, message
    assert run(tmp_path, found["meant"])[0] == 0
