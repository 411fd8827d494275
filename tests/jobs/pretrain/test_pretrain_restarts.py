"""Which restarts of a worker group are allowed, and the message when it is given up."""

import pytest

from jobs.contract import StageError
from jobs.pretrain.restarts import (
    Limit,
    RestartBudget,
    TooManyTogetherError,
    giving_up_message,
    stage_error,
    too_many_together,
)


class ActorDiedError(Exception):
    """Has the name of Ray's exception."""


LOST = [ActorDiedError("The actor died")]
BROKEN = [RuntimeError("cuDNN says no")]


def test_a_lost_node_never_counts() -> None:
    budget = RestartBudget(0)
    assert all(budget.allows(LOST, node_gone=True, progressed=False) for _ in range(50))
    assert budget.spent == 0


def test_a_lost_worker_counts_only_without_progress_of_its_runs() -> None:
    budget = RestartBudget(2)
    assert all(budget.allows(LOST, node_gone=False, progressed=True) for _ in range(50))
    allowed = [budget.allows(LOST, node_gone=False, progressed=False) for _ in range(3)]
    assert allowed == [True, True, False]


def test_an_error_of_the_training_itself_always_counts() -> None:
    budget = RestartBudget(1)
    allowed = [budget.allows(BROKEN, node_gone=False, progressed=True) for _ in range(2)]
    assert allowed == [True, False]


@pytest.mark.parametrize(
    "words", ["killed due to the node running low on memory", "ray.exceptions.OutOfMemoryError: x"]
)
def test_running_out_of_memory_comes_with_two_remedies(words: str) -> None:
    message = giving_up_message([ActorDiedError(words)], 4)
    assert "memory ran out" in message
    assert "decoded_gb" in message
    assert "images_per_pass" in message
    assert "\n" not in message


def test_an_error_that_a_restart_cannot_cure_is_unwrapped() -> None:
    class WrappedError(Exception):
        _base_exc = StageError("no space")

    found = stage_error([RuntimeError("collateral"), WrappedError()])
    assert str(found) == "no space"
    assert stage_error(BROKEN) is None
    assert (
        giving_up_message([RuntimeError("a\nb\n")], 2)
        == "its workers ended 2 times before it was done (b)"
    )


def test_runs_side_by_side_are_halved_until_each_is_alone() -> None:
    limit, sizes = Limit.of("auto"), []
    while limit.most_of(5) > 1:
        limit = limit.halved(5, "memory ran out")
        sizes.append(limit.most)
    assert sizes == [3, 2, 1]
    assert limit.why == "memory ran out"
    assert Limit.of(4).most_of(5) == 4
    assert Limit.of(4).halved(5, "").most == 2
    assert Limit.of(9).most_of(5) == 5


def test_memory_that_runs_out_is_told_from_other_errors_of_runs_side_by_side() -> None:
    asked = TooManyTogetherError("the GPU's memory does not suffice for 5 runs at once")
    assert too_many_together([RuntimeError("gloo"), asked]) == str(asked)
    killed = RuntimeError("Task was killed due to the node running low on memory")
    assert too_many_together([killed]) == "the machine's memory ran out"
    assert too_many_together(LOST + BROKEN) is None
