"""Errors in a run are reported, counted and undone; telemetry records its points."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from jobs.contract import StageError, Work
from jobs.encoders.encoder import load
from jobs.pretrain.loop import StoppedError, Watch
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.run import train_run
from jobs.pretrain.telemetry import MOST, TELEMETRY, TIMINGS, Telemetry
from tests.jobs.pretrain.conftest import with_step
from tests.jobs.pretrain.interruption import OFTEN, outputs


def spoil(monkeypatch: pytest.MonkeyPatch, updates: set[int]) -> None:
    """Make the losses and gradients of these updates (counted from 1 in the process) NaN."""
    real, calls = SupervisedObjective.step, 0

    def step(self: Any, model: Any, images: torch.Tensor, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(self, model, images * float("nan") if calls in updates else images, *rest)

    monkeypatch.setattr(SupervisedObjective, "step", step)


def test_a_nan_loss_stops_at_its_update(
    supervised: Callable[..., Any], make_work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5})
    with pytest.raises(StageError, match=r"the loss is nan at update 5 \(epoch 1\)"):
        train_run(make_work(supervised()))


def test_under_skip_a_nan_loss_is_skipped_and_counted_and_leaves_no_trace(
    supervised: Callable[..., Any], make_work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5, 6})
    work = with_step(make_work(supervised(ema_decay=0.9)), on_nan="skip")
    outcome = train_run(work, pace=OFTEN)
    assert outcome.counts["skipped_updates"] == 2
    assert outcome.counts["steps"] == 12
    weights = load(work.output).model.state_dict().values()
    assert all(bool(torch.isfinite(w.float()).all()) for w in weights)
    assert np.isfinite(list(outcome.metrics.values())).all()


def test_under_skip_a_nan_loss_is_skipped_with_scaled_gradients_too(
    supervised: Callable[..., Any], make_work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {5})
    work = with_step(make_work(supervised(precision="fp16")), on_nan="skip")
    assert train_run(work).counts["skipped_updates"] == 1


def test_skipped_updates_are_counted_across_a_resumed_run(
    supervised: Callable[..., Any], make_work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = with_step(make_work(supervised()), on_nan="skip")
    seen: list[float] = []
    watch = Watch(
        on_progress=lambda share, words: seen.append(share), stopping=lambda: len(seen) > 4
    )
    with monkeypatch.context() as patch:
        spoil(patch, {2})
        with pytest.raises(StoppedError):
            train_run(work, watch=watch)
    assert train_run(work).counts["skipped_updates"] == 1


def test_too_many_nan_losses_in_a_row_end_the_run(
    supervised: Callable[..., Any], make_work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(2, 100)))
    work = with_step(make_work(supervised()), on_nan="skip")
    with pytest.raises(StageError, match="not finite in 10 updates in a row, the last of them 11"):
        train_run(work)


def test_a_run_without_nan_is_the_same_under_skip(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    stop, skip = make_work(supervised(), "stop"), make_work(supervised(), "skip")
    train_run(stop)
    train_run(with_step(skip, on_nan="skip"))
    assert outputs(stop) == outputs(skip)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "the GPU's"),
        (MemoryError(), "the machine's"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "the machine's",
        ),
    ],
)
def test_running_out_of_memory_is_one_sentence_with_the_remedies(
    error: Exception,
    where: str,
    supervised: Callable[..., Any],
    make_work: Callable[..., Work],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(SupervisedObjective, "step", step)
    with pytest.raises(StageError, match=rf"{where} memory does not suffice for a pass of 16") as e:
        train_run(make_work(supervised()))
    assert "images_per_pass" in str(e.value)
    assert "schedule.batch_size" in str(e.value)


# -- telemetry -----------------------------------------------------------------------------------


def test_telemetry_has_a_point_every_so_many_updates_and_no_timings(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = with_step(make_work(supervised()), telemetry_steps=3)
    messages: list[str] = []
    train_run(work, watch=Watch(on_progress=lambda share, words: messages.append(words)))
    rows = work.output.read_table(TELEMETRY).to_pylist()
    assert {row["metric"] for row in rows} == {"loss", "lr", "grad_norm"}
    assert [row["step"] for row in rows if row["metric"] == "loss"] == [3, 6, 9, 12]
    timed = work.output.read_table(TIMINGS).to_pylist()
    assert {row["metric"] for row in timed} == {"images_per_s", "data_wait_percent"}
    values = [row["value"] for row in timed if row["metric"] == "data_wait_percent"]
    assert all(0 <= value <= 100 for value in values)
    assert all(row["value"] > 0 for row in timed if row["metric"] == "images_per_s")
    assert re.search(r", [\d,]+ images/s, \d+ s left$", messages[-2])
    assert messages[-1].endswith(" images/s, 0 s left")


@pytest.mark.parametrize(
    ("updates", "words"),
    [(60, "1 min"), (59, "59 s"), (61, "2 min"), (3601, "1 h 1 min"), (12_000, "3 h 20 min")],
)
def test_the_time_left_is_computed_from_the_current_speed(updates: int, words: str) -> None:
    telemetry = Telemetry(1, updates + 4, 32, torch.device("cpu"))
    assert telemetry.pace(1) == ""
    telemetry.speed = 32.0
    assert telemetry.pace(4) == f", 32 images/s, {words} left"


def test_telemetry_never_affects_the_weights(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    each, none = make_work(supervised(), "each"), make_work(supervised(), "none")
    train_run(with_step(each, telemetry_steps=1))
    train_run(with_step(none, telemetry_steps=1000))
    assert outputs(each)["model.safetensors"] == outputs(none)["model.safetensors"]


def test_a_long_run_has_at_most_a_thousand_points() -> None:
    telemetry = Telemetry(50, 187_500, 2048, torch.device("cpu"))
    due = [update for update in range(1, 187_501) if telemetry.due(update)]
    assert MOST / 2 < len(due) <= MOST
    assert due[0] == due[1] - due[0]
