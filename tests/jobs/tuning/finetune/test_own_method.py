"""A method of an extension that trains the encoder: it trains as plain torch does, its hooks are
called when they should be, and it goes on after an interruption as without one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.contract import StageError, Work
from jobs.encoders.encoder import load
from jobs.extensions import declared
from jobs.extensions.spec import Extension
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.finetune.cell import Cell, close, transfer
from jobs.tuning.finetune.check import check
from jobs.tuning.finetune.train import FineTuning
from jobs.tuning.heads import seeded
from jobs.tuning.methods import Method
from jobs.tuning.schedule import share
from jobs.tuning.search_space import Space
from jobs.tuning.spec import EncoderTuning
from jobs.tuning.trained import Configuration
from orchestrator import EXPERIMENTS
from tests import pretend
from tests.jobs.tuning.finetune.digits import INVERTED, VIEWS, step, work

MINE = """
import torch
from torch import nn

class Plain(nn.Module):
    hyperparameters = {"strength": (0.0, 1.0, 0.5)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        return self.classifier(self.norm(features))

    def loss(self, encoder, batch):
        ce = batch.task_loss(self.forward(encoder(batch.inputs)))
        moved = sum((w - encoder.start[n]).square().sum() for n, w in encoder.weights.items())
        return {"ce": ce, "moved": batch.hyper["strength"] * moved}

class Hooked(Plain):
    def __init__(self, dim, outputs):
        super().__init__(dim, outputs)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("finished", torch.zeros(()))

    def prepare(self, features, targets, hyper):
        self.mean = features.mean(0)
        assert len(features) == len(targets)

    def finish(self, encoder, hyper):
        self.finished += 1
        for name, weight in encoder.weights.items():
            weight.copy_(encoder.start[name])

class Stray(Plain):
    def prepare(self, features, targets, hyper):
        self.factor = 2.0

class Forgetful(Plain):
    calls = 0

    def loss(self, encoder, batch):
        self.calls += 1
        return {"ce": super().loss(encoder, batch)["ce"] * self.calls}

class Unused(Plain):
    def loss(self, encoder, batch):
        return {"ce": batch.task_loss(self.classifier(encoder(batch.inputs)))}

class Still(Plain):
    def loss(self, encoder, batch):
        return {"ce": batch.task_loss(self.forward(encoder(batch.inputs)).detach())}

class Broken(Plain):
    def loss(self, encoder, batch):
        return {"ce": batch.hyper["strenght"]}

class Wide(Plain):
    def forward(self, features):
        return self.norm(features) + 0 * self.classifier(features).sum()
"""
SOURCE = Extension.of("mine", MINE)
CONFIGURATION = Configuration(lr=0.005, weight_decay=1e-3, own={"strength": 0.1})


def cell_of(folder: Path, name: str, corpus: Folder, made: Folder, **changes: Any) -> Work:
    method = Method(head=f"mine:{name}", adapt="ft", space=Space(lr=0.01))
    spec = step(method, source=SOURCE, **changes)
    return work(folder, f"{name}-{spec.task.name}", spec, encoder=made, corpus=corpus)


def trained(cell: Work, epochs: int = 2) -> FineTuning:
    opened = Cell.open(cell)
    tuning = opened.start(0, CONFIGURATION)
    for _ in range(epochs):
        tuning.run_epoch()
    opened.keep(0, tuning)
    return tuning


def test_it_trains_as_plain_torch_trains_it(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    plain = EncoderTuning(views=VIEWS.model_copy(update={"count": 0}))
    cell = cell_of(tmp_path, "Plain", digits, encoder, encoder=plain)
    opened = Cell.open(cell)
    tuning = opened.start(0, CONFIGURATION)
    head: Any = nn.Module()
    head.norm, head.classifier = nn.BatchNorm1d(24), nn.Linear(24, 10)
    head.load_state_dict(tuning.adapted.head_state())
    found = [tuning.run_epoch() for _ in range(2)]

    copied = load(encoder)
    weights = copied.model.requires_grad_(True)
    start = {name: value.detach().clone() for name, value in weights.named_parameters()}
    optimizer = torch.optim.AdamW(
        [*weights.parameters(), *head.parameters()], 0.005, weight_decay=1e-3
    )
    inputs, count = opened.training, len(opened.training.labels)
    steps, taken = 2 * tuning.steps_per_epoch, 0
    for epoch in (1, 2):
        total, seen = 0.0, 0
        for rows in torch.randperm(count, generator=seeded(0, "order", epoch)).split(64):
            features = copied.forward(inputs.prepared.take(rows))
            logits = head.classifier(head.norm(features))
            moved = sum(
                (value - start[name]).square().sum()
                for name, value in weights.named_parameters()
                if not name.startswith("fc.")
            )
            loss = nn.functional.cross_entropy(logits, inputs.labels[rows]) + 0.1 * moved
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.005 * share("cosine", taken, steps)
            optimizer.step()
            total, seen, taken = (
                total + len(rows) * float(loss.detach()),
                seen + len(rows),
                taken + 1,
            )
        assert found[epoch - 1].train["loss"] == pytest.approx(total / seen, rel=1e-4)
    for name, value in tuning.adapted.trained().items():
        torch.testing.assert_close(value, weights.get_parameter(name), rtol=1e-3, atol=1e-5)


def test_prepare_comes_before_the_first_step_and_finish_after_the_last(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    cell = cell_of(tmp_path, "Hooked", digits, encoder)
    opened = Cell.open(cell)
    tuning = opened.start(0, CONFIGURATION)
    before = load(encoder)
    views = [
        before.forward(before.views(inputs, opened.training.keys, VIEWS, [number], "digits"))
        for inputs in [opened.training.prepared.take(torch.arange(len(opened.training.labels)))]
        for number in (1, 2)
    ]
    tuning.run_epoch()
    state = tuning.adapted.head_state()
    torch.testing.assert_close(state["mean"], torch.cat(views).mean(0), rtol=1e-3, atol=1e-5)
    assert float(state["finished"]) == 0
    moved = tuning.adapted.encoder.model.get_parameter("conv1.weight")
    assert not torch.equal(moved, before.model.get_parameter("conv1.weight"))
    tuning.run_epoch()
    assert float(tuning.adapted.head_state()["finished"]) == 1
    for name, value in tuning.adapted.trained().items():
        assert torch.equal(value, before.model.get_parameter(name)), name


def test_a_continued_configuration_gives_the_same_numbers(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    whole = trained(cell_of(tmp_path / "whole", "Hooked", digits, encoder))
    broken = cell_of(tmp_path / "broken", "Hooked", digits, encoder)
    trained(broken, 1)
    going = trained(broken, 1)  # in a process that has opened the cell anew
    assert going.save() == whole.save()


def test_no_tensor_is_left_on_the_other_device(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    losses = []
    for gpus, device in ((0, nullcontext()), (1, pretend.gpu())):
        with device:
            cell = cell_of(tmp_path / f"g{gpus}", "Hooked", digits, encoder, gpus=gpus, epochs=1)
            losses.append(trained(cell, 1).history[0].validation_loss)
    assert losses[0] == losses[1]


def test_a_closed_cell_keeps_the_file_and_its_ood_cell_predicts_alike(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    cell = cell_of(tmp_path, "Plain", digits, encoder)
    trained(cell)
    close(cell, [CONFIGURATION])
    assert (cell.output / "extension").read_bytes("mine.py").decode() == MINE
    own = cell.output.read_table(schema.HYPERPARAMETERS).to_pylist()
    assert [(row["name"], row["value"]) for row in own] == [("strength", 0.1)]
    (row,) = schema.from_table(schema.Cell, cell.output.read_table(schema.CELL))
    assert row.head == "mine:Plain"
    same = INVERTED.model_copy(update={"shift": None, "name": "digits-again"})
    ood = cell_of(tmp_path, "Plain", digits, encoder, task=same)
    ood = work(tmp_path, "ood", ood.spec, **ood.inputs, head=cell.output)  # type: ignore[arg-type]
    transfer(ood)
    predictions = [w.output.read_table(schema.PREDICTIONS) for w in (cell, ood)]
    assert predictions[0].equals(predictions[1])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Unused", "parameter norm.weight takes no part in the loss"),
        ("Still", "its loss depends on no parameter; nothing is trained"),
        ("Broken", r"^mine\.py, line 57: KeyError: 'strenght'$"),
        ("Wide", r"task_loss is given logits of shape \(32, 8\), and the task needs \(32, 3\)"),
        (
            "Stray",
            "prepare sets factor, which is neither parameter nor buffer; register it in __in",
        ),
        ("Forgetful", "goes on otherwise after an interruption than without one; keep all state"),
    ],
)
def test_a_fault_of_the_code_is_one_sentence(name: str, fault: str) -> None:
    with pytest.raises(StageError, match=fault):
        check(SOURCE.part(f"mine:{name}"), declared.parts(SOURCE)[name])


def test_the_check_passes_sound_methods_and_the_rivals() -> None:
    parts = declared.parts(SOURCE)
    assert {name for name, one in parts.items() if one.trains_encoder} == parts.keys()
    words = "trains the encoder, and goes on after an interruption as without one"
    assert check(SOURCE.part("mine:Hooked"), parts["Hooked"]).startswith(words)
    rivals = Extension.of("rivals", (EXPERIMENTS / "rivals.py").read_text())
    for name in ("LpFt", "WiseFt", "L2Sp"):
        assert words in check(rivals.part(f"rivals:{name}"), declared.parts(rivals)[name])
