"""What `extension check` says of a head of one's own to do works when it is done."""

import re
from pathlib import Path

import pytest

from commands import Run

HEAD = """
import torch
from torch import nn

class Mine(nn.Module):
    hyperparameters = {"strength": (0.0, None)}

    def __init__(self, dim, outputs):
        super().__init__()
        self.classifier = nn.Linear(dim, outputs)

    def forward(self, features):
        return self.classifier(features)

    def loss(self, batch):
        logits = self.forward(batch.features)
        size = logits.square().mean()
        return {"ce": batch.task_loss(logits), "size": batch.hyper["strength"] * size}
"""
SOLVED = """
import torch
from torch import nn

class Solved(nn.Module):
    def __init__(self, dim, outputs):
        super().__init__()
        self.register_buffer("means", torch.zeros(outputs, dim))

    def prepare(self, features, targets, hyper):
        self.means = torch.stack([features[targets == n].mean(0) for n in range(len(self.means))])

    def forward(self, features):
        return -torch.cdist(features, self.means)
"""
LINE = "self.classifier = nn.Linear(dim, outputs)"
CASES = {
    "logits of another shape": (
        "return -torch.cdist(features, self.means)",
        "return -torch.cdist(features, self.means).mT",
        r"return logits \[rows, outputs\], or \(logits, z\)",
    ),
    "a loss of other logits": (
        "batch.task_loss(logits)",
        "batch.task_loss(logits.mT)",
        r"mine\.py, line 18: .*of shape \(3, 64\), .* \(64, 3\); give it logits \[rows, outputs\]",
    ),
    "a loss of logits and more": (
        "batch.task_loss(logits)",
        "batch.task_loss((logits, logits))",
        r"logits of shape tuple, .*; give it logits \[rows, outputs\] alone",
    ),
    "a loss of each row": (
        "logits.square().mean()",
        "logits.square().mean(1)",
        r"loss gives 'size' no scalar tensor; take its mean",
    ),
    "a loss without a name": (
        'return {"ce": batch.task_loss(logits), "size": batch.hyper["strength"] * size}',
        "return batch.task_loss(logits) + size",
        r"loss returns Tensor, not losses by name; return a dict of scalars, such as \{'ce': ...\}",
    ),
    "a class of nothing": (
        "class Mine(nn.Module)",
        "class Mine(dict)",
        r"Mine is no torch\.nn\.Module; let its class inherit from it",
    ),
    "a parameter of no use": (
        LINE,
        f"{LINE}; self.unused = nn.Parameter(torch.ones(2))",
        r"parameter unused takes no part in the loss; make it a buffer",
    ),
    "another shape than it began with": (
        "torch.zeros(outputs, dim)",
        "torch.zeros(outputs, 1)",
        r"prepare gives means the shape .*; keep the shape",
    ),
    "state beside the parameters": (
        "        size = logits",
        "        self.count = getattr(self, 'count', 0) + 1\n        size = self.count * logits",
        r"keep all state in parameters and buffers",
    ),
}
MADE_A_BUFFER = f"{LINE}; self.register_buffer('unused', torch.ones(2))"


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    right, wrong, remedy = CASES[name]
    head = HEAD if right in HEAD else SOLVED
    assert right in head
    file = tmp_path / "mine.py"
    file.write_text(head.replace(right, wrong))
    code, message = run(tmp_path, "extension", "check", "mine.py")
    assert code == 2
    assert re.search(remedy, message), message
    mended = MADE_A_BUFFER if "make it a buffer" in remedy else right
    file.write_text(head.replace(right, mended))
    code, output = run(tmp_path, "extension", "check", "mine.py")
    assert code == 0, output
    assert output.startswith("ok     ")
