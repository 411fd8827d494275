"""Heads tested on other classes than their own: which outputs count, and as which class."""

from __future__ import annotations

import pytest
import torch

from jobs.contract import StageError
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.frozen.cell import evaluate_mapped
from jobs.tuning.frozen.stack import evaluate
from jobs.tuning.heads import Shape, StackedHeads
from jobs.tuning.rows import Labelled
from jobs.tuning.target import ClassTarget
from tests.jobs.tuning.blobs import ood_task

OUTPUTS = tuple("abcdefgh")
DIM = 5


def head(kind: str = "paper") -> StackedHeads:
    shape = Shape(kind, DIM, ClassTarget(len(OUTPUTS)))  # type: ignore[arg-type]
    return StackedHeads.fresh(shape, 1, 3, torch.device("cpu"))


def rows(classes: int, count: int = 200) -> Labelled:
    generator = torch.Generator().manual_seed(1)
    features = 3 * torch.randn(count, DIM, generator=generator)
    return Labelled(features, torch.arange(count) % classes)


def logits(heads: StackedHeads, part: Labelled) -> torch.Tensor:
    return heads.forward(part.features, training=False)[1][0].double()  # [C, N]


def test_only_the_subsets_outputs_can_be_chosen() -> None:
    names = ("g", "b", "d")
    heads, part = head(), rows(3)
    loss, predicted = evaluate_mapped(heads, part, ClassMapping.of(ood_task(), names, OUTPUTS))
    subset = logits(heads, part)[[6, 1, 3]]
    assert torch.equal(predicted[0], subset.argmax(0))
    assert not torch.equal(logits(heads, part).argmax(0), torch.tensor([6, 1, 3])[predicted[0]])
    expected = torch.nn.functional.cross_entropy(subset.T, part.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_class_can_have_several_outputs_and_the_largest_decides() -> None:
    task = ood_task(answers={"x": ("a", "c"), "y": ("f",), "z": ("b", "g", "h")})
    heads, part = head(), rows(3)
    loss, predicted = evaluate_mapped(heads, part, ClassMapping.of(task, ("x", "y", "z"), OUTPUTS))
    found = logits(heads, part)
    groups = [found[[0, 2]], found[[5]], found[[1, 6, 7]]]
    assert torch.equal(predicted[0], torch.stack([g.amax(0) for g in groups]).argmax(0))
    summed = torch.stack([g.logsumexp(0) for g in groups])
    expected = torch.nn.functional.cross_entropy(summed.T, part.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_heads_own_classes_give_the_bits_of_an_evaluation_without_a_mapping() -> None:
    heads, part = head(), rows(len(OUTPUTS))
    ours = evaluate_mapped(heads, part, ClassMapping.of(ood_task(), OUTPUTS, OUTPUTS))
    theirs = evaluate(heads, part, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_order_of_a_tasks_classes_does_not_matter() -> None:
    heads, part = head(), rows(len(OUTPUTS))
    turned = tuple(reversed(OUTPUTS))
    moved = Labelled(part.features, len(OUTPUTS) - 1 - part.labels)
    loss, predicted = evaluate_mapped(heads, moved, ClassMapping.of(ood_task(), turned, OUTPUTS))
    home, chosen = evaluate(heads, part, torch.device("cpu"))
    assert torch.equal(len(OUTPUTS) - 1 - predicted, chosen)
    assert loss.item() == pytest.approx(home.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("answers", "classes", "message"),
    [
        (
            None,
            ("a", "q"),
            r"needs the outputs q, but the heads of blobs-id have a, b, c, d, e, \.\.\. \(8",
        ),
        ({"x": ("q",)}, ("x",), "needs the outputs q"),
        ({"x": ("a",)}, ("x", "y"), "class y has no output"),
    ],
)
def test_a_class_without_an_output_is_refused(
    answers: object, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        ClassMapping.of(ood_task(answers=answers), classes, OUTPUTS)


def test_an_output_whose_name_two_classes_have_is_never_guessed() -> None:
    outputs = ("crane", "fox", "crane")
    same = ClassMapping.of(ood_task(), outputs, outputs)
    assert same.is_identity(3)
    with pytest.raises(StageError, match="two classes of blobs-id are called so; give each"):
        ClassMapping.of(ood_task(), ("crane", "fox"), outputs)
    assert ClassMapping.of(ood_task(), ("fox",), outputs).outputs.tolist() == [1]
