"""What a message about an encoder that is trained with its head tells its user to do works."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from jobs.contract import StageError
from jobs.encoders.encoder import load
from jobs.extensions import declared
from jobs.extensions.spec import Extension
from jobs.storage.folder import Folder
from jobs.tuning.finetune.cell import transfer
from jobs.tuning.finetune.check import check
from jobs.tuning.finetune.model import AdaptedEncoder, adapted_layers
from jobs.tuning.target import ClassTarget
from tests.jobs.tuning.finetune.digits import (
    CONFIGURATIONS,
    INVERTED,
    METHODS,
    put_encoder,
    step,
    train_all,
    work,
)
from tests.jobs.tuning.finetune.test_own_method import MINE

AGAIN = r"run (that|the ID) cell again$|delete that cell's folder and run it again$"
Damage = Callable[[Folder], object]
DAMAGE: dict[str, Damage] = {
    "adapts another encoder": lambda head: None,
    "is not the file that": lambda head: head.write_bytes("adapter.safetensors", b"other"),
    "cannot be used": lambda head: head.write_bytes("adapter.json", b"{"),
    "holds no adapted encoder": lambda head: head.delete("adapter.json"),
    "is not the output of an ID cell": lambda head: head.delete("head.safetensors"),
}


def test_an_adapted_encoder_is_tested_once_its_cell_is_run_again(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    quick: Any = {"epochs": 1, "configurations": 1, "fraction": 10.0}
    one = step("lora", **quick)
    trained = work(tmp_path, "id", one, encoder=encoder, corpus=digits)
    other = put_encoder(Folder.of(tmp_path / "other"), seed=1)
    spec = step("lora", task=INVERTED, **quick)

    def tested(on: Folder) -> int:
        inputs = {"encoder": on, "corpus": digits, "head": trained.output}
        return transfer(work(tmp_path, "ood", spec, **inputs)).counts["test_reads"]

    train_all(trained, CONFIGURATIONS[:1])
    for what, damage in DAMAGE.items():
        damage(trained.output)
        with pytest.raises(StageError, match=what) as caught:
            tested(other if what == "adapts another encoder" else encoder)
        assert re.search(AGAIN, str(caught.value)), caught.value
    shutil.rmtree(trained.output.local_path())
    again = work(tmp_path, "id", one, encoder=other, corpus=digits)
    train_all(again, CONFIGURATIONS[:1])
    assert tested(other) == 1


def test_lora_of_a_model_without_such_layers_is_ft(encoder: Folder) -> None:
    card = load(encoder).card
    with pytest.raises(StageError, match=r"for lora to adapt; use (ft)$"):
        adapted_layers(card, nn.Sequential(nn.Linear(2, 2)))
    assert adapted_layers(card, load(encoder).model)


def test_weights_of_another_rank_are_adapted_again(encoder: Folder) -> None:
    def adapted(rank: int) -> AdaptedEncoder:
        method = METHODS["lora"].model_copy(update={"rank": rank})
        return AdaptedEncoder(load(encoder), method, ClassTarget(10), 0)

    cell, state = adapted(2), adapted(4)
    with pytest.raises(StageError, match=r"lora weights do not fit .*; run the ID cell again$"):
        cell.load(state.state(), state.head_state())
    again = adapted(2)  # as that cell is then
    cell.load(again.state(), again.head_state())


def test_lora_needs_its_library(encoder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def adapted() -> AdaptedEncoder:
        return AdaptedEncoder(load(encoder), METHODS["lora"], ClassTarget(10), 0)

    with monkeypatch.context() as without:
        without.setitem(sys.modules, "peft", None)
        with pytest.raises(StageError, match=r"cannot be imported .*; install nml-orch\[lora\]$"):
            adapted()
    assert adapted().state()


OWN: dict[str, tuple[str, str, str]] = {
    "Unused": (
        r"takes no part in the loss; make it a buffer, or use it$",
        "self.classifier(encoder(batch.inputs))",
        "self.forward(encoder(batch.inputs))",
    ),
    "Forgetful": (
        r"keep all state in parameters and buffers$",
        "    calls = 0\n",
        "    def __init__(self, dim, outputs):\n"
        "        super().__init__(dim, outputs)\n"
        "        self.register_buffer('calls', torch.zeros(()))\n",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_a_method_that_trains_the_encoder_is_mended(name: str) -> None:
    remedy, old, new = OWN[name]
    assert MINE.count(old) == 1

    def checked(text: str) -> str:
        source = Extension.of("mine", text)
        return check(source.part(f"mine:{name}"), declared.parts(source)[name])

    with pytest.raises(StageError, match=remedy):
        checked(MINE)
    assert checked(MINE.replace(old, new)).startswith("trains the encoder")
