"""`status` and `plan`: a store for people and for machines, gaps and reasons first."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import synthetic
from commands import PATIENCE
from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.assess import look, reasons
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.store.lease import Leases
from orchestrator.store.store import Store

WORDS = ["--noise", "0,10", "--seeds", "0", "--set", "tasks=[digits]"]


@pytest.fixture
def small() -> Plan:
    return build.build(
        load.load(noise="0,10", seeds="0", overrides=["tuning.fractions=[100]", "tasks=[digits]"])
    )


@pytest.fixture
def store(small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    made = Store(Folder.of(tmp_path / "nml-store"))
    synthetic.fill(small, made)
    return made


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert _run([*words]) == 0
    return capsys.readouterr().out


def test_every_gap_is_in_the_matrix_with_its_reason(
    small: Plan, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = small.of_kind("features")[1]  # of level 10: its five cells cannot be done
    store.output(failed.address).delete()
    store.scratch(failed).write_bytes("error.txt", b"Traceback ...\nValueError: no such layer\n")
    for cell in small.of_kind("tune"):
        if cell.labels["noise"] == 10 or cell.labels["method"] == "lp":
            store.output(cell.address).delete()
    running = Leases(store.root)
    lp = next(s for s in small.of_kind("tune") if s.labels["method"] == "lp")
    assert running.acquire(lp.address)
    page = output(capsys, "status", *WORDS)
    running.close()
    rows = {line.split()[-3]: line.split()[-2:] for line in page.splitlines() if "/1" in line}
    assert rows["lp"] == ["0/1~", "0/1^"]
    assert rows["mlp"] == ["1/1", "0/1^"]
    assert rows["features"] == ["1/1", "0/1!"]
    assert "12 done, 1 running, 1 failed, 5 blocked" in page
    assert f"failed {failed.address}: ValueError: no such layer" in page
    assert "(and 4 more): reads " + failed.address in page


def test_fifty_thousand_reasons_are_a_few_lines(small: Plan) -> None:
    blocked = {
        f"tune/{n}": StepStatus(StepState.BLOCKED, "reads pretrain/a") for n in range(50_000)
    }
    found = {"pretrain/a": StepStatus(StepState.FAILED, "the loss is not finite"), **blocked}
    assert list(reasons(found)) == [
        (found["pretrain/a"], "pretrain/a", 1),
        (blocked["tune/0"], "tune/0", 50_000),
    ]


def test_what_reads_a_blocked_step_names_the_root(small: Plan, store: Store) -> None:
    pretrain = small.of_kind("pretrain")[0]
    for step in small.steps.values():
        if step.labels.get("noise") == 0 and step.kind != "noise":
            store.output(step.address).delete()
    store.scratch(pretrain).write_bytes("error.txt", b"RuntimeError: out of memory")
    found = look(small, store)
    cells = [found[s.address] for s in small.of_kind("tune") if s.labels["noise"] == 0]
    assert set(cells) == {StepStatus(StepState.BLOCKED, f"reads {pretrain.address}")}


def test_a_failure_of_other_settings_is_not_reported(store: Store) -> None:
    overrides = ["tuning.fractions=[100]", "tasks=[digits]", "pretrain.recipe.schedule.lr=100"]
    before = build.build(load.load(noise="0,10", seeds="0", overrides=overrides))
    after = build.build(load.load(noise="0,10", seeds="0", overrides=overrides[:2]))
    failed = before.of_kind("pretrain")[0]
    store.output(failed.address).delete()
    store.scratch(failed).write_bytes("error.txt", b"RuntimeError: the loss is not finite")
    assert look(before, store)[failed.address].state is StepState.FAILED
    assert look(after, store)[failed.address].state is StepState.MISSING


def test_json_has_every_step_with_its_coordinates(
    small: Plan, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = json.loads(output(capsys, "status", "--json", *WORDS))
    assert set(entries) == set(small.steps)
    cell = small.of_kind("tune")[0]
    assert entries[cell.address] == {"state": "done", "reason": "", **cell.labels}


def test_json_and_watch_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["status", "--json", "--watch"]) == 2
    assert "--json and --watch" in capsys.readouterr().err


def test_watch_follows_the_store_and_ends_by_ctrl_c(small: Plan, store: Store) -> None:
    cells = small.of_kind("tune")
    for cell in cells:
        store.output(cell.address).delete()
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "nml_orch", "status", "--watch", *WORDS],
        stdin=subprocess.DEVNULL,
        stdout=side,
        stderr=side,
        env={**os.environ, "COLUMNS": "120", "LINES": "40"},
    )
    os.close(side)
    seen = ""

    def wait_for(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + PATIENCE
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536).decode(errors="replace")

    try:
        wait_for("10 missing")
        synthetic.finish(store, cells[0])
        wait_for("9 missing")
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            try:
                seen += os.read(main, 65536).decode(errors="replace")
            except OSError:  # the terminal's other end is closed
                break
        assert process.wait(timeout=PATIENCE) == 0
        assert "Traceback" not in seen
    finally:
        process.kill()
        os.close(main)


def test_the_plan_prices_what_is_left_from_the_rate_it_is_given(
    small: Plan, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in small.of_kind("pretrain")[:1]:
        store.output(step.address).delete()
    words = ["plan", "--json", "--images-per-second", "500", "--gpus", "4", *WORDS]
    cost = json.loads(output(capsys, *words))["cost"]
    epochs = 15
    assert cost["pretrain_runs"] == 1
    assert cost["samples"] == epochs * 960
    assert cost["optimiser_steps"] == epochs * 15  # whole batches of 64 in 1,000 rows
    assert cost["hours"] == pytest.approx(epochs * 960 / 500 / 3600)
    assert cost["wall_hours"] == pytest.approx(cost["gpu_hours"] / 4)
    left = next(s for s in small.of_kind("pretrain")[1:])
    manifest = store.manifest(left.address)
    assert manifest is not None
    assert cost["bytes_to_write"] == sum(file.bytes for file in manifest.files.values())


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (120, 40)])
def test_a_watched_page_fits_its_window(width: int, height: int, tmp_path: Path) -> None:
    from orchestrator.cli.options import Chosen
    from orchestrator.cli.status import _fitted

    experiment = load.load(noise="0,1,2,5,10,20,30,40", seeds="0,1")
    made = build.build(experiment)
    chosen = Chosen(experiment, made, Store(Folder.of(tmp_path)))
    lines = _fitted(chosen, look(made, chosen.store), width, height)
    assert len(lines) <= height - 2
    assert all(len(line) <= width for line in lines[1:]), "the first has the store's path"
    assert lines[1].startswith(f"{len(made.steps):,} missing")


def test_without_a_store_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = output(capsys, "status")
    assert said.startswith(f"There is no store at {tmp_path}/nml-store: no sweep has run there.")
    assert said.count("\n") == 1
    assert json.loads(output(capsys, "status", "--json"))
