"""`lora` and `ft` on a real Ray: results of all cells, ASHA, and sweeps that continue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commands import PATIENCE
from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.draw import configurations_of
from jobs.tuning.finetune.cell import state_name
from jobs.tuning.finetune.train import history_of
from jobs.tuning.job import run
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.spec import Halving, TuneStep
from tests.jobs.tuning.finetune.digits import INVERTED, METHODS, step, train_all, work


@dataclass
class Answers:
    stop: Callable[[], bool] = lambda: False
    results: dict[str, Outcome | BaseException] = field(default_factory=dict)

    def done(self, address: str, result: Outcome | BaseException) -> None:
        assert address not in self.results
        self.results[address] = result

    @property
    def hooks(self) -> Hooks:
        return Hooks(self.done, lambda *_: None, lambda: self.stop())


def tried(cell: Work) -> list[schema.Tried]:
    return schema.from_table(schema.Tried, cell.output.read_table(schema.CONFIGURATIONS))


def row(cell: Work) -> schema.Cell:
    (found,) = schema.from_table(schema.Cell, cell.output.read_table(schema.CELL))
    return found


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name, _ in folder.files()}


@dataclass(frozen=True)
class Swept:
    """Cells that one run of the stage was given, and what became of each."""

    folder: Path
    methods: dict[str, Work]
    halved: list[Work]
    results: dict[str, Outcome | BaseException]


@pytest.fixture(scope="module")
def swept(
    ray_of_two: None,
    digits: Folder,
    encoder: Folder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    inputs = {"encoder": encoder, "corpus": digits}
    methods = {name: work(folder, name, step(name), **inputs) for name in METHODS}
    diverging = Method(head="linear", adapt="ft", space=Space(lr=1e30))
    nowhere = {"encoder": Folder.of(folder / "nowhere"), "corpus": digits}
    spread = Method(
        head="linear", adapt="ft", space=Space.model_validate({"lr": {"loguniform": [1e-5, 1e-2]}})
    )
    changes = {"fraction": 20.0, "epochs": 4, "configurations": 6}
    changes["halving"] = Halving(first=1, eta=2)
    halved = [
        work(folder, f"halved-{seed}", step(spread, seed=seed, **changes), **inputs)
        for seed in (0, 1)
    ]
    others = [
        work(folder, "diverges", step(diverging), **inputs),
        work(folder, "missing", step("ft"), **nowhere),
        work(folder, "greedy", step("ft", gpus=99), **inputs),
        work(folder, "wide", step("ft", cpus=512), **inputs),
    ]
    works = [*methods.values(), *others, *halved]
    answers = Answers()
    thread = threading.Thread(target=run, args=(works, answers.hooks))
    thread.start()
    thread.join(timeout=PATIENCE)
    assert set(answers.results) == {w.address for w in works}
    return Swept(folder, methods, halved, answers.results)


@pytest.mark.slow
def test_a_failing_cell_fails_alone(swept: Swept) -> None:
    assert "all 2 configurations failed" in str(swept.results["diverges"])
    assert "tuning.gpus=99, but" in str(swept.results["greedy"])
    assert "tuning.cpus=512, but" in str(swept.results["wide"])
    assert isinstance(swept.results["greedy"], StageError)
    assert "FileNotFoundError" in str(swept.results["missing"])


@pytest.mark.slow
def test_cells_of_all_methods_end_with_equal_budgets_and_are_then_transferred(
    swept: Swept, digits: Folder, encoder: Folder
) -> None:
    for cell in swept.methods.values():
        ended = swept.results[cell.address]
        assert isinstance(ended, Outcome), swept.results
        assert ended.seconds
        assert [t.epochs for t in tried(cell)] == [2, 2]
    assert len({tuple(t.lr for t in tried(cell)) for cell in swept.methods.values()}) == 1

    inputs = {"encoder": encoder, "corpus": digits}
    ood = [
        work(swept.folder, f"ood-{name}", step(name, task=INVERTED), head=trained.output, **inputs)
        for name, trained in swept.methods.items()
    ]
    answers = Answers()
    run(ood, answers.hooks)
    for cell in ood:
        assert isinstance(answers.results[cell.address], Outcome), answers.results
        assert row(cell).trained_on == "digits"


@pytest.mark.slow
def test_asha_stops_some_at_a_rung_within_a_cell_and_records_it(swept: Swept) -> None:
    # Which trials a rung stops depends on the order in which they reach it.
    assert any(t.epochs < 4 for cell in swept.halved for t in tried(cell))
    for cell in swept.halved:
        outcome = swept.results[cell.address]
        assert isinstance(outcome, Outcome), outcome
        found = tried(cell)
        assert len(found) == 6
        assert {t.epochs for t in found} <= {1, 2, 4}, "rungs stand at 1, 2 and 4 epochs"
        stopped = [t for t in found if t.epochs < 4]
        assert outcome.counts["configurations_dropped"] == len(stopped)
        assert all((t.dropped is None) == (t.epochs == 4) for t in found)
        assert all(t.failed is None and t.validation_accuracy is not None for t in found)
        assert next(t for t in found if t.selected).epochs == 4


@pytest.mark.slow
def test_an_interrupted_cell_continues_and_writes_the_bytes_of_one_trained_here_without_ray(
    ray_of_two: None, digits: Folder, encoder: Folder, tmp_path: Path, one_thread: None
) -> None:
    inputs = {"encoder": encoder, "corpus": digits}
    spec: TuneStep = step("lora", configurations=3, epochs=3)
    alone = work(tmp_path, "alone", spec, **inputs)
    train_all(alone, tuple(configurations_of(alone) or ()))

    broken = work(tmp_path, "broken", spec, **inputs)
    first = Answers(stop=lambda: broken.scratch.exists(state_name(0)))
    run([broken], first.hooks)
    assert first.results == {}
    data = broken.scratch.read_bytes(state_name(0))
    assert 1 <= len(history_of(data)) <= 3
    second = Answers()
    run([broken], second.hooks)
    assert isinstance(second.results["broken"], Outcome), second.results
    after = history_of(broken.scratch.read_bytes(state_name(0)))
    assert after[: len(history_of(data))] == history_of(data)
    assert contents(broken.output) == contents(alone.output)
