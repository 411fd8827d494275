"""The cost of a plan: the counts, the source of each rate, and what is unknown."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import synthetic
from jobs.contract import Outcome
from jobs.storage.folder import Folder
from jobs.tuning.spec import TuneStep
from orchestrator.cli import _run
from orchestrator.experiment import load
from orchestrator.plan import build, rates
from orchestrator.plan.assess import assess
from orchestrator.plan.cost import Cost, estimate
from orchestrator.plan.counting import batch_fault, rows_trained
from orchestrator.plan.plan import Plan
from orchestrator.plan.speed import FORWARD_SHARE, Given, measured
from orchestrator.step.step import Step
from orchestrator.store.store import Store

LEVELS, EPOCHS, VIEWS = 2, 15, 2


@pytest.fixture
def plan() -> Plan:
    return build.build(load.load(noise="0,10", seeds="0", overrides=["tuning.fractions=[100]"]))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Folder.of(tmp_path))


def priced(plan: Plan, store: Store, **given: float) -> Cost:
    return estimate(plan, assess(plan, store), Given(**given))  # type: ignore[arg-type]


def test_all_stages_are_priced_from_given_rates_before_anything_ran(
    plan: Plan, store: Store
) -> None:
    rates = {"images_per_second": 100, "features_per_second": 400, "cells_per_hour": 60}
    cost = priced(plan, store, rows=720, gpus=4, price_per_gpu_hour=2.5, **rates)
    assert cost.samples == LEVELS * EPOCHS * 704  # whole batches of 64
    assert cost.optimiser_steps == LEVELS * EPOCHS * 11
    assert cost.hours == pytest.approx(cost.samples / 100 / 3600)
    assert cost.feature_hours is not None
    assert cost.feature_samples is not None
    assert cost.feature_hours == pytest.approx(cost.feature_samples / 400 / 3600)
    trained = [s for s in plan.of_kind("tune") if s.labels["domain"] == "id"]
    assert 0 < len(trained) == cost.cells_trained < cost.cells
    assert cost.tuning_hours == pytest.approx(len(trained) / 60)
    assert cost.unknown == ()
    assert cost.gpu_hours == pytest.approx(cost.hours + cost.feature_hours + cost.tuning_hours)
    assert cost.wall_hours == pytest.approx(cost.gpu_hours / 4)
    assert cost.price == pytest.approx(cost.gpu_hours * 2.5)


def test_every_view_of_a_training_image_is_encoded(plan: Plan, store: Store) -> None:
    digits = 1797  # as the reader declares
    corpus = plan.steps["corpus/digits"].spec
    share = {name: getattr(corpus, "parts").model_dump()[name] for name in ("train", "test")}  # noqa: B009
    share["validation"] = 1 - share["train"] - share["test"]
    expected = 0
    for step in plan.of_kind("features"):
        for part in getattr(step.spec, "parts"):  # noqa: B009
            expected += round(digits * share[part]) * (1 + VIEWS if part == "train" else 1)
    assert priced(plan, store).feature_samples == expected


def test_corpora_that_are_not_built_have_as_many_images_as_their_tasks_declare(
    store: Store,
) -> None:
    views = "features.views={count: 2, augment: {flip: true}}"
    tasks = "tasks=[fashion-mnist, emoji-noto, emoji-noto-to-twemoji]"
    planned = build.build(load.load("encoders-file", overrides=[tasks, views]))
    fashion = 54_000 * 3 + 6_000 + 10_000
    emoji = next(s for s in planned.of_kind("tune") if "/emoji-noto/" in s.address).spec
    assert isinstance(emoji, TuneStep)
    assert emoji.task.facts
    assert emoji.task.corpus
    rows, share = emoji.task.facts.sizes["reader"], emoji.task.corpus.parts.shares
    drawn = round(rows * share[0]) * 3 + round(rows * share[1]) + round(rows * share[2])
    other = next(s for s in planned.of_kind("tune") if "/emoji-noto-to-twemoji/" in s.address).spec
    assert isinstance(other, TuneStep)
    assert other.task.facts
    by_others = other.task.facts.sizes["reader"]
    assert priced(planned, store).feature_samples == fashion + drawn + by_others
    one = build.build(load.load("encoders-file", overrides=["tasks=[fashion-mnist]", views]))
    assert priced(one, store).feature_samples == fashion


def test_unknown_costs_are_named_and_left_out_of_the_sum(plan: Plan, store: Store) -> None:
    cost = priced(plan, store)
    assert cost.unknown == ("pre-training", "features", "tuning")
    assert cost.gpu_hours == 0
    assert any(line.startswith("Together: unknown time") for line in cost.lines())
    partial = priced(plan, store, cells_per_hour=10)
    assert any("on CPUs, without pre-training and features" in line for line in partial.lines())
    cost = priced(plan, store, images_per_second=100)
    assert cost.unknown == ("tuning",)
    assert cost.feature_samples is not None
    hours = cost.feature_samples / (FORWARD_SHARE * 100) / 3600
    assert cost.feature_hours == pytest.approx(hours)
    assert "assumed" in cost.feature_hours_rest_on


def test_rates_are_measured_from_the_ends_of_steps_with_pauses_left_out(
    plan: Plan, store: Store
) -> None:
    synthetic.fill(plan, store)
    kinds: dict[str, list[Step]] = {}
    for step in plan.steps.values():
        kinds.setdefault(step.kind, []).append(step)
    cells = kinds["tune"]
    store.output(cells[-1].address).delete()  # one is left to do
    for at, step in enumerate(plan.steps.values()):
        if step is cells[-1]:
            continue
        pause = 60 if step.kind == "tune" else 0  # the sweep was stopped before its cells
        moment = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(minutes=at + pause)
        outcome = Outcome({"rows_train": 1000}, {"pretrain/images_per_s": 1000.0})
        store.commit(step, outcome, {"finished": moment.isoformat(timespec="seconds")})
    cost = priced(plan, store)
    done = [s for s in cells[1:-1] if s.labels["domain"] == "id"]
    spent = 60 * (len(cells) - 1 - 1)  # the first follows a pause, and did not record its time
    expected = f"at {3600 * len(done) / spent:.0f} cells/h, measured in this store"
    assert cost.tuning_hours_rest_on == expected
    assert cost.cells == 1
    assert cost.pretrain_runs == 0
    assert cost.hours == 0


@pytest.mark.parametrize("pause", [0, 24 * 3600], ids=["in a row", "after a pause"])
def test_a_cell_longer_than_a_pause_is_charged_what_it_took(
    plan: Plan, store: Store, pause: int
) -> None:
    """One cell in four takes an hour, the others two seconds."""
    synthetic.fill(plan, store)
    moment = datetime(2026, 11, 21, tzinfo=UTC)
    cells = [s for s in plan.of_kind("tune") if s.labels["domain"] == "id"]
    for step in plan.steps.values():
        record = {"finished": moment.isoformat(timespec="seconds")}
        if step in cells:
            seconds = 3600 if cells.index(step) % 4 == 0 else 2
            moment += timedelta(seconds=seconds + (pause if seconds > 2 else 0))
            record = {"finished": moment.isoformat(timespec="seconds"), "seconds": seconds - 0.1}
        store.commit(step, Outcome({"rows_train": 1000}), record)
    store.output(cells[-1].address).delete()
    hours = priced(plan, store).tuning_hours
    long = sum(at % 4 == 0 for at in range(len(cells) - 1))  # hours, over the finished cells
    assert hours == pytest.approx(long / (len(cells) - 1), rel=0.02)


def test_a_finished_plan_costs_nothing(plan: Plan, store: Store) -> None:
    synthetic.fill(plan, store)
    cost = priced(plan, store)
    assert cost.gpu_hours == 0
    assert cost.unknown == ()
    assert cost.lines()[0].startswith("Nothing left to run")


@pytest.mark.parametrize("given", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--images-per-second", "--price-per-gpu-hour"])
def test_a_rate_that_is_no_finite_number_is_refused(
    option: str, given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["plan", "--storage", str(tmp_path), option, given]) == 2
    assert "is not a finite number" in capsys.readouterr().err


def test_a_batch_above_the_training_rows_is_refused_when_planned(
    tmp_path: Path, store: Store
) -> None:
    def fault(batch: int, rows: int | None = None) -> str | None:
        batches = [f"pretrain.recipe.schedule.batch_size={batch}"]
        planned = build.build(load.load(noise="0", seeds="0", overrides=batches))
        return batch_fault(planned, assess(planned, store), rows)

    assert fault(1797) is None  # until the corpus is built, its training rows are an estimate
    assert "batch_size is 1,798, but the training part of corpus digits has 1,797" in str(
        fault(1798)
    )
    assert fault(100, rows=100) is None
    assert "has 99 rows: they do not fill a batch; lower it" in str(fault(100, rows=99))
    planned = build.build(load.load(overrides=["pretrain.recipe.schedule.batch_size=2000"]))
    assert batch_fault(planned.only("corpus"), assess(planned, store)) is None
    words = ["plan", "--set", "pretrain.recipe.schedule.batch_size=2000"]
    assert _run([*words, "--storage", str(tmp_path / "s")]) == 2


def test_a_plan_on_cpus_tells_minutes_and_one_on_gpus_hours(store: Store) -> None:
    rates = {"images_per_second": 500, "features_per_second": 1500, "cells_per_hour": 600}
    epochs = "pretrain.recipe.schedule.epochs=30"
    small = ["tasks=[digits]", epochs]
    here = build.build(load.load(noise="0,10", seeds="0", overrides=small))
    lines = priced(here, store, **rates).lines()
    assert any(line.startswith("  Time on CPUs: 2 min (at the given 500") for line in lines)
    assert any(line.endswith("min on CPUs") for line in lines if line.startswith("Together"))
    assert not any("GPU" in line for line in lines)
    there = build.build(
        load.load(
            noise="0,10",
            overrides=["tasks=[digits]", "pretrain.resources.gpus_per_worker=1"],
        )
    )
    assert any("GPU-hours" in line for line in priced(there, store, **rates).lines())


def test_a_plan_for_a_new_store_has_the_rates_of_the_last_sweep_on_this_machine(
    plan: Plan, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of 680 s and one over 18 minutes came without a word."""
    monkeypatch.setenv("NML_RATES", str(tmp_path / "rates.json"))
    assert priced(plan, store).unknown == ("pre-training", "features", "tuning")
    moment, seconds = datetime(2026, 11, 21, tzinfo=UTC), {"pretrain": 60, "features": 5, "tune": 2}
    for step in plan.steps.values():
        moment += timedelta(seconds=seconds.get(step.kind, 1))
        counts = {"rows_train": 300, "rows_validation": 100, "rows_test": 200, "n_train": 100}
        record = {"finished": moment.isoformat(timespec="seconds")}
        speed = {"pretrain/images_per_s": 500.0}
        store.commit(step, Outcome(counts, speed if step.kind == "pretrain" else {}), record)
    rates.remember(plan, measured(plan, store.records(plan.steps)))

    fresh = Store(Folder.of(tmp_path / "fresh"))
    cost = priced(plan, fresh, rows=720)
    assert cost.unknown == ()
    assert cost.hours == pytest.approx(LEVELS * EPOCHS * 704 / 500 / 3600)
    parts = [getattr(step.spec, "parts") for step in plan.of_kind("features")]  # noqa: B009
    encoded = sum(200 if part == ("test",) else 300 * (1 + VIEWS) + 300 for part in parts)
    assert cost.feature_samples is not None
    expected = cost.feature_samples / (encoded / (5 * len(parts))) / 3600
    assert cost.feature_hours == pytest.approx(expected)
    cells = plan.of_kind("tune")
    trained = [step for step in cells if step.labels["domain"] == "id"]
    planned = rows_trained(plan, trained, assess(plan, fresh))
    assert planned is not None
    once = sum(s.spec.settings.epochs * s.spec.settings.configurations for s in trained)  # type: ignore[attr-defined]
    assert cost.tuning_hours == pytest.approx(planned / (100 * once) * 2 * len(cells) / 3600)
    said = "measured on this machine by the sweep of demo on 20"
    assert all(said in line for line in cost.lines() if line.startswith("  Time"))

    other = build.build(load.load("encoders-file", overrides=["tasks=[fashion-mnist]"]))
    assert "features" in priced(other, fresh).unknown  # another model: its rate is not known
    (tmp_path / "rates.json").write_text("{")
    assert priced(plan, fresh).unknown == ("pre-training", "features", "tuning")
