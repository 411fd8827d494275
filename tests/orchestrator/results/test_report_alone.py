"""Two sweeps that share a store and an experiment's name write one report after the other."""

import threading
from contextlib import closing
from pathlib import Path

import pytest

import synthetic
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.results import collect
from orchestrator.store.lease import Leases
from orchestrator.store.store import Store


def plan(noise: str) -> Plan:
    return build.build(load.load(noise=noise, seeds="0", overrides=["tasks=[digits]"]))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(Folder.of(tmp_path / "nml-store"))
    synthetic.fill(plan("0,10,20"), made)
    return made


def test_no_report_is_a_mix_of_two(store: Store) -> None:
    faults: list[BaseException] = []

    def write(noise: str) -> None:
        try:
            for number in range(3):
                failed = StepStatus(StepState.FAILED, f"{noise}, {number}")
                report = collect.refresh(plan(noise), store, {"corpus/digits": failed})
                assert report.folder.uri.endswith("report/demo")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in ("0,10", "0,20", "0,10,20")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    written = collect._Written(
        **{
            name: value
            for name, value in (store.root / "report/demo").read_json("manifest.json").items()
            if name in ("fingerprint", "files", "constant", "answer")
        }
    )
    assert collect._intact(store.root / "report/demo", written.files)


def test_a_report_that_another_one_writes_is_waited_for_and_not_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan("0,10")
    with closing(Leases(store.root)) as other:
        assert other.acquire("report/demo")
        monkeypatch.setattr(collect, "PATIENCE", 0.5)
        with pytest.raises(StoreError, match=r"is writing report/demo; when it has ended, run"):
            collect.refresh(made, store)
        monkeypatch.setattr(collect, "PATIENCE", 600.0)
        threading.Timer(0.5, other.release, ["report/demo"]).start()
        report = collect.refresh(made, store)
        assert other.acquire("report/demo")  # to read what is written needs no lease
        assert collect.refresh(made, store).fingerprint == report.fingerprint
