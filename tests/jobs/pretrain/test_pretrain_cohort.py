"""Runs that train side by side end as if each were alone, and fail alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psutil
import pytest
import torch

from jobs.contract import Outcome, StageError, Work
from jobs.images.training import training_input
from jobs.pretrain import cohort, footprint, prepare
from jobs.pretrain.cohort import Result
from jobs.pretrain.data.in_memory import MemorySource
from jobs.pretrain.data.reader import LazyImages
from jobs.pretrain.data.streamed import StreamedSource
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Loop, Pace, StoppedError, Watch
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.prepare import Run
from jobs.pretrain.restarts import Limit, TooManyTogetherError
from jobs.pretrain.run import train_run, train_runs
from jobs.pretrain.spec import Resources
from tests.jobs.pretrain.conftest import LEVELS, with_step
from tests.jobs.pretrain.interruption import OFTEN, SELDOM, Killed, killing_watch, outputs

pytestmark = pytest.mark.slow

RICH: dict[str, Any] = {
    "augment": {"degrees": 10, "translate": 0.1, "flip": True, "erase": 0.5, "erase_mode": "pixel"},
    "mix": {"mixup": 0.4, "cutmix": 1.0, "group": 8, "mode": "elem"},
    "model_options": {"channels": [4, 4, 8, 8], "drop_rate": 0.3, "drop_path_rate": 0.2},
    "ema_decay": 0.9,
    "clip_grad_norm": 1.0,
}

RECIPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "supervised": ("supervised", RICH, {}),
    "supervised-streamed": ("supervised", RICH, {"decoded_gb": 0}),
    "crops-in-bf16": ("supervised", {"augment": {"crop": (0.5, 1)}, "precision": "bf16"}, {}),
    "in-passes": ("supervised", RICH, {"images_per_pass": 6, "channels_last": True}),
    "skips-nan": ("supervised", {}, {"on_nan": "skip"}),
    "contrastive": ("contrastive", {"augment": {"flip": True}}, {}),
    "contrastive-streamed": ("contrastive", {}, {"decoded_gb": 0, "images_per_pass": 6}),
}

Make = Callable[..., list[Work]]


@pytest.fixture
def make_levels(make_work: Callable[..., Work]) -> Make:
    """The works of all levels of one seed, which a name tells apart from others."""

    def make(recipe: Any, name: str, **resources: Any) -> list[Work]:
        on_nan = resources.pop("on_nan", "stop")
        return [
            with_step(
                make_work(recipe, f"{name}-{level}", level=level, **resources),
                telemetry_steps=3,
                on_nan=on_nan,
            )
            for level in LEVELS
        ]

    return make


def together(
    works: Sequence[Work],
    watches: Sequence[Watch] | None = None,
    pace: Pace = SELDOM,
    limit: Limit | None = None,
) -> dict[str, Result]:
    """How each run ended, by address, when all train side by side."""
    results: dict[str, Result] = {}

    def ended(work: Work, result: Result) -> None:
        assert work.address not in results
        results[work.address] = result

    watches = watches or [Watch() for _ in works]
    runs = [Run(work, watch) for work, watch in zip(works, watches, strict=True)]
    train_runs(runs, ended, pace=pace, limit=limit)
    return results


def facts(result: Result) -> tuple[Any, Any]:
    """Counts, and all metrics but the speed."""
    assert isinstance(result, Outcome), result
    metrics = {k: v for k, v in result.metrics.items() if k != "pretrain/images_per_s"}
    return result.counts, metrics


def are_alone(works: Sequence[Work], results: dict[str, Result], alone: Sequence[Work]) -> None:
    """Every run has the files, counts and metrics of the run trained alone."""
    for work, other in zip(works, alone, strict=True):
        assert facts(results[work.address]) == facts(train_run(other, pace=SELDOM))
        found, wanted = outputs(work), outputs(other)
        assert found.keys() == wanted.keys()
        for file in wanted:
            assert found[file] == wanted[file], (work.address, file)


@pytest.mark.parametrize("name", RECIPES)
def test_runs_side_by_side_write_the_bytes_of_runs_alone(
    name: str, request: pytest.FixtureRequest, make_levels: Make
) -> None:
    objective, changes, resources = RECIPES[name]
    recipe = request.getfixturevalue(objective)(**changes)
    works = make_levels(recipe, "together", **resources)
    alone = make_levels(recipe, "alone", **resources)
    are_alone(works, together(works), alone)
    weights = {outputs(work)["model.safetensors"] for work in works}
    assert len(weights) == len(LEVELS), "every level has weights of its own"


@contextmanager
def counted_batches() -> Iterator[list[int]]:
    """The number of batches that sources give inside the block."""
    count = [0]

    def counting(batches: Any) -> Any:
        def counted(*args: Any) -> Iterator[Any]:
            for batch in batches(*args):
                count[0] += 1
                yield batch

        return counted

    with (
        mock.patch.object(MemorySource, "batches", counting(MemorySource.batches)),
        mock.patch.object(StreamedSource, "batches", counting(StreamedSource.batches)),
    ):
        yield count


@pytest.mark.parametrize("decoded_gb", [None, 0])
def test_each_batch_is_read_and_prepared_once_for_all_levels(
    decoded_gb: float | None, supervised: Callable[..., Any], make_levels: Make
) -> None:
    inputs = "jobs.pretrain.inputs.training_input"
    with counted_batches() as count, mock.patch(inputs, wraps=training_input) as prepared:
        together(make_levels(supervised(), "together", decoded_gb=decoded_gb))
    assert count[0] == prepared.call_count == 12  # two epochs of six


def test_a_validation_image_is_decoded_once_for_all_levels(
    supervised: Callable[..., Any], make_levels: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    inner = LazyImages.__getitem__

    def counting(self: LazyImages, rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return inner(self, rows)

    monkeypatch.setattr(LazyImages, "__getitem__", counting)
    together(make_levels(supervised(), "clean", decoded_gb=0)[:1])
    one = sum(seen)
    seen.clear()
    together(make_levels(supervised(), "together", decoded_gb=0))
    flipped = 10 + 30  # memorised rows of the levels, which are their own
    assert sum(seen) == one + flipped


# -- interruptions -------------------------------------------------------------------------------


def interrupted(works: Sequence[Work], after: int, pace: Pace = OFTEN) -> dict[str, Result]:
    """Train the works side by side, killed after every `after` updates of the last one."""
    results: dict[str, Result] = {}
    while left := [work for work in works if work.address not in results]:
        watches = [*(Watch() for _ in left[1:]), killing_watch(after)]
        runs = [Run(work, watch) for work, watch in zip(left, watches, strict=True)]
        try:
            train_runs(runs, lambda work, r: results.__setitem__(work.address, r), pace=pace)
        except Killed:
            continue
    return results


@pytest.mark.parametrize("decoded_gb", [None, 0])
def test_runs_killed_side_by_side_again_and_again_end_with_the_same_bytes(
    decoded_gb: float | None, supervised: Callable[..., Any], make_levels: Make
) -> None:
    works = make_levels(supervised(), "together", decoded_gb=decoded_gb)
    alone = make_levels(supervised(), "alone", decoded_gb=decoded_gb)
    are_alone(works, interrupted(works, 4), alone)


def test_runs_that_are_behind_catch_up_and_then_share_the_batches(
    supervised: Callable[..., Any], make_levels: Make
) -> None:
    recipe = supervised(epochs=3)
    works, alone = make_levels(recipe, "together"), make_levels(recipe, "alone")
    every = Pace(minutes=0, time_share=0.0)  # a checkpoint after each update
    for work, updates in zip(works, (9, 4, 0), strict=True):
        if updates:
            with pytest.raises(Killed):
                train_run(work, watch=killing_watch(updates + 1), pace=every)
    with counted_batches() as count:
        results = together(works)
    assert count[0] == 18, "no batch is read twice"
    are_alone(works, results, alone)


def test_a_level_added_later_trains_alone(
    supervised: Callable[..., Any], make_levels: Make
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    results = together(works[:2])
    results |= together(works[2:])
    are_alone(works, results, alone)


def test_runs_asked_to_stop_stop_at_one_batch_and_resume_there(
    supervised: Callable[..., Any], make_levels: Make
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    seen: list[float] = []
    second = Watch(on_progress=lambda share, _: seen.append(share), stopping=lambda: len(seen) > 4)
    with pytest.raises(StoppedError):
        together(works, [Watch(), second, Watch()])
    newest = {max(name for name, _ in work.scratch.files()) for work in works}
    assert len(newest) == 1
    with counted_batches() as count:
        results = together(works)
    assert count[0] == 12 - 5
    are_alone(works, results, alone)


# -- failures ------------------------------------------------------------------------------------


def failing(work: Work, at: int, error: Exception) -> Watch:
    """A watch of a run that raises an error at an update."""
    updates = 0

    def on_progress(share: float, words: str) -> None:
        nonlocal updates
        updates += share > 0
        if updates == at:
            raise error

    return Watch(on_progress=on_progress)


@pytest.mark.parametrize("error", [StageError("the loss is nan"), RuntimeError("odd")])
def test_a_run_that_fails_leaves_the_others_training(
    error: Exception, supervised: Callable[..., Any], make_levels: Make
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    results = together(works, [Watch(), failing(works[1], 5, error), Watch()])
    assert results[works[1].address] is error
    assert list(works[1].output.files()) == []
    are_alone([works[0], works[2]], results, [alone[0], alone[2]])


def test_a_run_whose_loss_is_not_finite_ends_with_its_own_sentence(
    supervised: Callable[..., Any], make_levels: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    inner, calls = SupervisedObjective.step, [0]

    def step(self: Any, model: Any, images: Any, targets: Any, *more: Any) -> Any:
        calls[0] += 1
        scored = inner(self, model, images, targets, *more)
        if calls[0] == 1 + 3 * 4 + 1:  # after the measured pass and four batches of three runs
            scored.losses.fill_(float("nan"))
        return scored

    with monkeypatch.context() as patched:
        patched.setattr(SupervisedObjective, "step", step)
        results = together(works)
    failed = results[works[0].address]
    assert isinstance(failed, StageError)
    assert "the loss is nan at update 5 (epoch 1)" in str(failed)
    are_alone(works[1:], results, alone[1:])


def test_noise_that_cannot_be_used_ends_its_own_run_alone(
    supervised: Callable[..., Any], make_levels: Make, toy: Any
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    works[1].inputs["noise"] = toy.noise("caption", 10)  # type: ignore[index]
    results = together(works)
    assert "changes captions" in str(results[works[1].address])
    are_alone([works[0], works[2]], results, [alone[0], alone[2]])


def test_a_corpus_that_no_run_can_use_ends_each_with_the_same_sentence(
    supervised: Callable[..., Any], make_levels: Make
) -> None:
    works = make_levels(supervised(batch_size=1000), "together")
    results = together(works)
    assert len(results) == 3
    assert {"do not fill a batch of 1000" in str(error) for error in results.values()} == {True}


def test_a_model_that_changes_its_input_may_not_share_it(
    supervised: Callable[..., Any], make_levels: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = Loop.update

    def update(self: Any, images: torch.Tensor, *more: Any) -> Any:
        images.mul_(1)
        return inner(self, images, *more)

    monkeypatch.setattr(Loop, "update", update)
    works = make_levels(supervised(), "together")
    with pytest.raises(TooManyTogetherError, match="changes its input"):
        together(works)
    assert isinstance(together(works[:1])[works[0].address], Outcome)


# -- how many ------------------------------------------------------------------------------------


def test_running_out_of_memory_asks_for_fewer_and_a_run_alone_fails_with_the_remedy(
    supervised: Callable[..., Any], make_levels: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    inner, at_once = cohort.Cohort._train_batch, [0]

    def small(self: Any, *more: Any) -> None:
        at_once[0] = len(self._loops)
        with monkeypatch.context() as patched:
            if at_once[0] > 2:
                patched.setattr(Loop, "update", mock.Mock(side_effect=MemoryError))
            inner(self, *more)

    monkeypatch.setattr(cohort.Cohort, "_train_batch", small)
    with pytest.raises(TooManyTogetherError, match="does not suffice for 3 runs at once") as raised:
        together(works)
    limit = Limit.of("auto").halved(3, str(raised.value))
    assert limit.most == 2
    heard: list[str] = []
    watches = [Watch(on_progress=lambda share, words: heard.append(words)) for _ in works]
    are_alone(works, together(works, watches, limit=limit), alone)
    said = ", 2 of 3 runs side by side (the machine's memory does not suffice for 3 runs at once)"
    assert any(words.endswith(said) for words in heard)


def test_as_many_train_at_once_as_memory_holds(
    supervised: Callable[..., Any], make_levels: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, alone = make_levels(supervised(), "together"), make_levels(supervised(), "alone")
    monkeypatch.setattr(prepare.footprint, "most_together", lambda *_: 2)
    heard: list[str] = []
    watches = [Watch(on_progress=lambda share, words: heard.append(words)) for _ in works]
    are_alone(works, together(works, watches), alone)
    for count in (1, 2):
        said = f", {count} of 3 runs side by side (memory holds no more)"
        assert any(words.endswith(said) for words in heard)


def test_a_message_says_how_many_runs_share_the_time_that_is_left(
    supervised: Callable[..., Any], make_levels: Make
) -> None:
    heard: list[str] = []
    works = make_levels(supervised(), "together")
    together(works, [Watch(on_progress=lambda _, words: heard.append(words)), Watch(), Watch()])
    assert heard[-1].endswith("images/s, 0 s left, 3 runs side by side")


def test_a_runs_footprint_counts_its_tensors_and_measures_its_activations(
    supervised: Callable[..., Any], make_levels: Make
) -> None:
    recipe = supervised(optimizer="adamw", ema_decay=0.9)
    step = with_step(make_levels(recipe, "one")[0]).spec
    group = DistributedGroup()
    shared = prepare.share(step, make_levels(recipe, "one")[0], group)  # type: ignore[arg-type]
    model = shared.objective.build(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    part, schedule = shared.validation, recipe.schedule
    whole = footprint.measure(shared.objective, model, part, schedule, group, None)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert whole.kept == 4 * weights + 2 * buffers
    half = footprint.measure(shared.objective, model, part, schedule, group, 8)
    assert whole.step - weights == pytest.approx(2 * (half.step - weights), rel=0.01)
    # The first convolution alone keeps its 16 images, and every ReLU its result.
    assert whole.step > weights + 16 * 16 * 16 * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_memory_holds_what_is_left_beside_a_step_and_copies_for_checkpoints(
    monkeypatch: pytest.MonkeyPatch, supervised: Callable[..., Any]
) -> None:
    memory = mock.Mock(available=1000.0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 10_000))
    resources = with_resources(gpus_per_worker=1)
    cpu, gpu = DistributedGroup(), DistributedGroup(device=torch.device("cuda", 0))
    small = footprint.Footprint(kept=100, step=200)
    assert footprint.most_together(small, resources, cpu) == (800 - 200) // 200
    assert footprint.most_together(small, resources, gpu) == 800 // 100  # copies in the machine
    assert footprint.most_together(footprint.Footprint(100, 7_800), resources, gpu) == 2
    assert footprint.most_together(footprint.Footprint(10**6, 1), resources, gpu) == 1


def with_resources(**fields: Any) -> Resources:
    return Resources.model_validate(fields)
