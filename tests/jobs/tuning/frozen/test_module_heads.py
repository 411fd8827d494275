"""A method of an extension trains in a stack as it trains alone, and as plain torch trains it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.extensions import declared
from jobs.extensions.load import load
from jobs.extensions.spec import Extension, Part
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.check import check
from jobs.tuning.frozen.train import train
from jobs.tuning.heads import Shape, seeded
from jobs.tuning.module_heads import hyper_of, member, single
from jobs.tuning.rows import Labelled
from jobs.tuning.schedule import share
from jobs.tuning.target import ClassTarget
from jobs.tuning.trained import Configuration

MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    hyperparameters = {"strength": (0.0, 1.0), "whole": (1, 3, 2)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.change = nn.Linear(dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        z = features + self.dropout(self.norm(self.change(features)))
        return self.classifier(z), z

    def loss(self, batch):
        logits, z = self.forward(batch.features)
        apart = (z - batch.features).square().mean()
        return {"ce": batch.task_loss(logits), "apart": batch.hyper["strength"] * apart}

class OneByOne(Mine):
    def loss(self, batch):
        terms = super().loss(batch)
        if terms["ce"].item() < 0:
            raise RuntimeError
        return terms

class Counting(Mine):
    calls = 0
    def loss(self, batch):
        Counting.calls += 1
        return {"ce": batch.task_loss(self.forward(batch.features)[0]) * Counting.calls}

class Broken(Mine):
    def loss(self, batch):
        return {"ce": batch.hyper["strenght"]}

class Unused(Mine):
    def loss(self, batch):
        return {"ce": batch.task_loss(self.classifier(batch.features))}

class Wide(Mine):
    def forward(self, features):
        return features, features
"""
EXTENSION = Extension.of("mine", MINE)
DIM, CLASSES, SEED = 16, 3, 3
BUDGET = Budget(epochs=3, batch_size=32)
TRIED = [Configuration(1e-2, 1e-3, own={"strength": w}) for w in (0.0, 0.1, 0.5)]


def blobs(samples: int, views: int, seed: int) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(7))
    shape = (views, samples, DIM) if views else (samples, DIM)
    return Labelled(centres[labels] + torch.randn(shape, generator=generator), labels)


def shape_of(name: str) -> Shape:
    return Shape("extension", DIM, ClassTarget(CLASSES), part=Part(EXTENSION, name))


def trained(name: str, tried: list[Configuration] = TRIED, budget: Budget = BUDGET) -> Any:
    return train(shape_of(name), blobs(100, 2, 1), blobs(50, 0, 2), tried, budget, seed=SEED)


def declared_as(name: str) -> declared.Declared:
    return declared.parts(EXTENSION)[name]


@pytest.mark.parametrize(("name", "words"), [("Mine", "as one stack of 4"), ("OneByOne", "one by")])
def test_a_stack_gives_what_each_gets_alone(name: str, words: str) -> None:
    assert words in check(Part(EXTENSION, name), declared_as(name))


def test_what_cannot_be_stacked_says_why_and_trains_to_the_same_numbers() -> None:
    stacked, alone = trained("Mine"), trained("OneByOne")
    assert stacked.unstackable is None
    assert alone.unstackable.startswith("mine:OneByOne cannot be stacked (mine.py, line 27: ")
    assert alone.unstackable.endswith("it trains one by one")
    torch.testing.assert_close(
        stacked.epochs[-1].validation_loss, alone.epochs[-1].validation_loss, rtol=1e-4, atol=1e-6
    )
    assert stacked.chosen == alone.chosen


def test_halving_and_turns_keep_what_each_member_has() -> None:
    whole = trained("Mine")
    shape, rows = shape_of("Mine"), (blobs(100, 2, 1), blobs(50, 0, 2))
    turns = train(shape, *rows, TRIED, BUDGET, seed=SEED, memory=1)
    torch.testing.assert_close(
        whole.epochs[-1].validation_loss, turns.epochs[-1].validation_loss, rtol=1e-4, atol=1e-6
    )


def test_a_member_trains_as_plain_torch_trains_it() -> None:
    (configuration,) = tried = TRIED[1:2]
    found = trained("Mine", tried)
    module: nn.Module = member(shape_of("Mine"), SEED)
    optimizer = torch.optim.AdamW(module.parameters(), configuration.lr, weight_decay=1e-3)
    training, validation = blobs(100, 2, 1), blobs(50, 0, 2)
    steps, taken = 3 * BUDGET.epochs + BUDGET.epochs, 0  # a last batch of four
    for epoch in range(1, BUDGET.epochs + 1):
        order = torch.randperm(100, generator=seeded(SEED, "order", epoch))
        for samples in order.split(BUDGET.batch_size):
            torch.manual_seed(seeded(SEED, "draws", taken).initial_seed())
            rows = training.features[:, samples].flatten(0, 1)
            targets = training.labels[samples].repeat(2)
            z = rows + module.dropout(module.norm(module.change(rows)))  # type: ignore[operator]
            loss = nn.functional.cross_entropy(module.classifier(z), targets)  # type: ignore[operator]
            loss = loss + 0.1 * (z - rows).square().mean()
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = configuration.lr * share("cosine", taken, steps)
            optimizer.step()
            taken += 1
    module.eval()
    with torch.no_grad():
        logits, _ = module(validation.features)
    wanted = nn.functional.cross_entropy(logits, validation.labels).item()
    assert found.epochs[-1].validation_loss.item() == pytest.approx(wanted, rel=1e-4)
    state: dict[str, Tensor] = found.state
    _, again = single(shape_of("Mine"), state).forward(validation.features, training=False)
    torch.testing.assert_close(again[0].mT, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Broken", r"^mine\.py, line 39: KeyError: 'strenght'$"),
        ("Unused", "parameter change.weight takes no part in the loss"),
        ("Wide", r"forward returns logits of shape \(50, 16\), and the task needs \(50, 3\)"),
        ("Counting", "in a stack and .* alone; keep all state in parameters and buffers"),
    ],
)
def test_a_fault_of_the_code_is_one_sentence(name: str, fault: str) -> None:
    with pytest.raises(StageError, match=fault):
        FAULTS.get(name, trained)(name)


def checked(name: str) -> None:
    check(Part(EXTENSION, name), declared_as(name))


def evaluated(name: str) -> None:
    state = dict(member(shape_of(name), 0).state_dict())
    single(shape_of(name), state).forward(torch.zeros(50, DIM), training=False)


FAULTS: dict[str, Any] = {"Counting": checked, "Wide": evaluated}


def test_a_batch_gives_declared_hyperparameters_and_defaults() -> None:
    found = hyper_of(shape_of("Mine"), TRIED)
    assert found["strength"].tolist() == pytest.approx([0.0, 0.1, 0.5])
    assert found["whole"].tolist() == [2, 2, 2]
    assert load(Part(EXTENSION, "Mine")).hyperparameters.keys() == found.keys()
