"""Images that cannot be decoded do not end a run: they are grey, counted, and limited."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs.contract import StageError, Work
from jobs.pretrain.damaged import DamagedImages
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.run import train_run
from jobs.pretrain.spec import PretrainStep
from tests.jobs.pretrain.conftest import with_step
from tests.jobs.pretrain.interruption import interrupted, outputs

Make = Callable[..., Work]


@pytest.fixture
def make_damaged(make_work: Make, damaged_toy: Any, supervised: Callable[..., Any]) -> Make:
    """A run on the damaged corpus."""

    def make(name: str, level: int = 30, **resources: object) -> Work:
        work = make_work(supervised(batch_size=20, epochs=3), name, **resources)
        inputs = {"corpus": damaged_toy.corpus, "noise": damaged_toy.noise("label", level)}
        return replace(work, inputs=inputs)

    return make


@pytest.mark.slow
def test_a_run_in_memory_streamed_and_interrupted_gives_the_same_files_and_counts(
    make_damaged: Make,
) -> None:
    works = [make_damaged("memory"), make_damaged("streamed", decoded_gb=0)]
    works.append(make_damaged("interrupted", decoded_gb=0))
    outcomes = [train_run(works[0]), train_run(works[1]), interrupted(works[2], after=4)]
    assert [outcome.counts["damaged_images"] for outcome in outcomes] == [4, 4, 4]
    assert outcomes[0].counts == outcomes[1].counts == outcomes[2].counts
    assert outputs(works[0]) == outputs(works[1]) == outputs(works[2])


def test_every_level_has_the_same_damaged_images(make_damaged: Make) -> None:
    counts = [train_run(make_damaged(f"l{n}", n)).counts["damaged_images"] for n in (0, 10)]
    assert counts == [4, 4]


@pytest.mark.parametrize("resources", [{}, {"decoded_gb": 0}])
def test_more_damaged_images_than_allowed_end_the_run_in_one_sentence(
    make_damaged: Make, resources: dict[str, object]
) -> None:
    work = with_step(make_damaged("few", **resources), max_damaged=2)
    with pytest.raises(StageError, match=r"[34] images cannot be decoded, more than pretrain") as e:
        train_run(work)
    assert "= 2 (shard train-00000.parquet: image 'toy/1007', for one)" in str(e.value)
    assert train_run(with_step(make_damaged("enough", **resources), max_damaged=4)).counts


def test_the_limit_is_checked_again_after_a_resumed_run(make_damaged: Make) -> None:
    """A limit that is lowered between two attempts holds for what the first attempt met."""
    met: set[str] = {"a", "b"}
    images = DamagedImages(DistributedGroup(), 2, [met, set()])
    images.check_own()
    assert images.check() == ("a", "b")
    images.restore(["c"])
    for check in (images.check, images.check_own):
        with pytest.raises(StageError, match="3 images cannot be decoded"):
            check()


def test_the_limit_is_no_part_of_a_runs_identity(make_damaged: Make) -> None:
    work = make_damaged("any")
    assert isinstance(work.spec, PretrainStep)
    assert work.spec.semantic() == with_step(work, max_damaged=3).spec.semantic()
    assert "max_damaged" not in work.spec.semantic()


def test_a_run_without_damage_counts_none(make_work: Make, supervised: Callable[..., Any]) -> None:
    assert "damaged_images" not in train_run(make_work(supervised(epochs=1))).counts
