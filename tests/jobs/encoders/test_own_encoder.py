"""An encoder of an extension is checked, imported and opened again, by its planned text alone."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from jobs.contract import StageError, Work
from jobs.encoders import encoder
from jobs.encoders.digests import digest
from jobs.encoders.encoder import gridded
from jobs.encoders.own import build
from jobs.encoders.own_check import check
from jobs.encoders.pretrained import import_encoder
from jobs.encoders.spec import EncoderStep, OwnEncoder
from jobs.extensions import declared
from jobs.images.spec import Grid
from jobs.storage.folder import Folder
from jobs.tuning.finetune.model import AdaptedEncoder
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.target import ClassTarget
from tests.jobs.encoders.own_models import IMAGE, SOURCE


def checked(name: str) -> str:
    return check(SOURCE.part(f"mine:{name}"), declared.parts(SOURCE)[name])


def test_a_sound_encoder_passes_the_check() -> None:
    assert checked("small") == (
        "gives 8 features of 32 x 32 pixels and a map of 8 x 8 patches; 408 parameters"
    )
    assert checked("words") == "gives 8 features of a text; 472 parameters"
    assert "_helper" not in declared.parts(SOURCE)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("noisy", "gives encoder.stem.bias other values when it is built again from the same seed"),
        ("unused", "parameter more.weight takes no part in the features"),
        ("beside", "gives a row other features when it is encoded alone"),
        ("padded", "let them depend on that row only, without its padding"),
        ("hidden", "gives other features when its weights are loaded again; keep all state in"),
        ("drawn", "gives other features of the same rows in eval mode"),
        ("broken", r"^mine\.py, line 52: AttributeError: 'Broken' object has no attribute"),
        ("flat", r"mine:flat gives \(8,\) for 1 rows; give features \[N, D\], a tensor"),
        ("nothing", "mine:nothing returns NoneType; return a torch.nn.Module"),
        ("asks", "mine:asks: give width a default, with which it can be tried"),
    ],
)
def test_a_fault_of_the_code_is_one_sentence(name: str, fault: str) -> None:
    with pytest.raises(StageError, match=fault):
        checked(name)


def imported(folder: Path, **fields: Any) -> Work:
    fields = {"model": "mine:small", **fields}
    spec = OwnEncoder(name="own", image=IMAGE, source=SOURCE, **fields)
    step = EncoderStep(encoder=digest(spec))  # type: ignore[arg-type]
    work = Work("encoder/own", "0", step, {}, Folder.of(folder / "out"), Folder.of(folder / "s"))
    import_encoder(work)
    return work


def test_lora_adapts_the_convolutions_of_an_own_encoder(tmp_path: Path) -> None:
    opened: Any = encoder.load(imported(tmp_path).output, source=SOURCE)
    method = Method(head="linear", adapt="lora", rank=2, space=Space(lr=0.1))
    adapted = AdaptedEncoder(opened, method, ClassTarget(2), 0)
    assert {name.split(".lora_")[0] for name in adapted.state()} == {"encoder.stem"}


def test_an_encoder_of_an_extension_takes_its_weights_from_a_file_or_from_the_function(
    tmp_path: Path,
) -> None:
    torch.manual_seed(5)
    module: Any = build(SOURCE.part("mine:small"), {}, IMAGE, 0).encoder
    tensors = {**module.state_dict(), "head.weight": torch.zeros(3, 8)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    file = {"file": str(tmp_path / "w.safetensors"), "leave_out": ("head.",)}
    work = imported(tmp_path / "file", **file)
    opened: Any = encoder.load(work.output, source=SOURCE)
    assert torch.equal(opened.model.encoder.stem.weight, module.stem.weight)
    assert opened.card.source["weights"] == "w.safetensors"
    assert (work.output / "extension").exists("mine.py")
    drawn = [imported(tmp_path / name).output.read_bytes("model.safetensors") for name in "ab"]
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="leave_out belong to file"):
        OwnEncoder(name="own", model="mine:small", leave_out=("head.",))


def test_tasks_of_masks_read_the_module_s_own_map(tmp_path: Path) -> None:
    opened = encoder.load(imported(tmp_path).output, source=SOURCE)
    patches = gridded(opened, Grid(size=32), 2)
    assert patches.dim == 8 * 8 * 8
    with pytest.raises(StageError, match=r"one map of patches; leave out features\.grid\.layer"):
        gridded(opened, Grid(layer=1), 2)
    work = imported(tmp_path / "bare", model="mine:bare")
    with pytest.raises(StageError, match="its module has no method map"):
        gridded(encoder.load(work.output, source=SOURCE), Grid(), 2)
