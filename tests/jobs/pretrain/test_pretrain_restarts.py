"""Which losses of a worker group are forgiven, and what is said of those that are not."""

import pytest

from jobs.contract import StageError
from jobs.pretrain.restarts import Budget, in_words, own_error


class ActorDiedError(Exception):
    """By name what Ray raises."""


LOST = [ActorDiedError("The actor died")]
BROKEN = [RuntimeError("cuDNN says no")]


def test_a_node_that_is_taken_away_never_counts() -> None:
    budget = Budget(0)
    assert all(budget.allows(LOST, node_gone=True, further=False) for _ in range(50))
    assert budget.spent == 0


def test_a_lost_worker_counts_only_while_its_runs_get_no_further() -> None:
    budget = Budget(2)
    assert all(budget.allows(LOST, node_gone=False, further=True) for _ in range(50))
    allowed = [budget.allows(LOST, node_gone=False, further=False) for _ in range(3)]
    assert allowed == [True, True, False]


def test_an_error_of_the_training_itself_always_counts() -> None:
    budget = Budget(1)
    allowed = [budget.allows(BROKEN, node_gone=False, further=True) for _ in range(2)]
    assert allowed == [True, False]


@pytest.mark.parametrize(
    "words", ["killed due to the node running low on memory", "ray.exceptions.OutOfMemoryError: x"]
)
def test_running_out_of_memory_comes_with_two_remedies(words: str) -> None:
    said = in_words([ActorDiedError(words)], 4)
    assert "memory ran out" in said
    assert "decoded_gb" in said
    assert "images_per_pass" in said
    assert "\n" not in said


def test_what_trying_again_cannot_cure_is_taken_out_of_its_wrapping() -> None:
    class WrappedError(Exception):
        _base_exc = StageError("no space")

    found = own_error([RuntimeError("collateral"), WrappedError()])
    assert str(found) == "no space"
    assert own_error(BROKEN) is None
    assert (
        in_words([RuntimeError("a\nb\n")], 2) == "its workers ended 2 times before it was done (b)"
    )
