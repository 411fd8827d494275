"""`benchmarks/gpu.py`, which runs unattended on rented time, loses nothing to a bad section."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_refuses_in_one_sentence(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert (
        said.err == "gpu.py: this machine has no CUDA device; --dry tries the script without one\n"
    )
    assert said.out == ""


def test_sections_that_fail_or_lack_a_package_are_named_and_the_rest_is_measured(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    measure = gpu.measure
    sections = {
        "unknown": gpu.Section(None, 10),  # to the process that should measure it
        "lacking": gpu.Section(None, 10, ("no_such_package",)),
        "card": gpu.SECTIONS["card"],
        "endless": gpu.Section(None, 0),
    }

    def limited(section: object, name: str, out: Path, dry: bool, left: float) -> str | None:
        found: str | None = measure(section, name, out, dry, 0.01 if name == "endless" else left)
        return found

    monkeypatch.setattr(gpu, "SECTIONS", sections)
    monkeypatch.setattr(gpu, "measure", limited)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--out", str(tmp_path / "figures")])
    assert gpu.main() == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["failed"]) == {"unknown", "endless"}
    assert "there is no section unknown" in result["failed"]["unknown"]
    assert result["failed"]["endless"] == "stopped after 0 s"
    assert result["left_out"] == {"lacking": "not installed: no_such_package"}
    kept = [json.loads(x) for x in (tmp_path / "figures/figures.jsonl").read_text().splitlines()]
    assert kept[0].keys() >= {"tflops_bf16"}
    assert result.items() >= kept[0].items()
