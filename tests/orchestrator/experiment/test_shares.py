"""Percentages that look like shares are asked about; what is meant is written with its unit."""

from pathlib import Path

import pytest
import yaml

from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.errors import UserError
from orchestrator.experiment import last_sweep, load


@pytest.mark.parametrize(
    ("noise", "overrides", "question"),
    [
        ("0.05", [], "noise.levels: is 0.05 percent meant, or a share of 1?"),
        ("0,0.1,0.3", [], "write 10 for 10 %, or 0.1% if 0.1 percent is meant"),
        (None, ["tuning.fractions=[0.1, 1.0]"], "tuning.fractions: is 0.1 percent meant"),
        (None, ["tuning.label_noise=[0, 0.2]"], "tuning.label_noise: is 0.2 percent meant"),
    ],
)
def test_what_looks_like_a_share_is_asked_about(
    noise: str | None, overrides: list[str], question: str
) -> None:
    with pytest.raises(UserError) as caught:
        load.load(noise=noise, overrides=overrides)
    assert question in str(caught.value)


def test_percent_with_its_unit_is_taken_at_its_word() -> None:
    assert load.load(noise="0,0.05%").noise.levels == (0, 0.05)
    overrides = ["tuning.fractions=[0.1%, 1%]"]
    assert load.load(overrides=overrides).tuning.fractions == (0.1, 1.0)


def test_small_percentages_among_large_ones_are_not_asked_about() -> None:
    assert load.load(noise="0,0.5,5").noise.levels == (0, 0.5, 5)
    assert load.load(overrides=["tuning.fractions=[0.5,100]"]).tuning.fractions == (0.5, 100)
    assert load.load(noise="1").noise.levels == (1,)


def test_a_kept_experiment_is_a_file_that_is_not_asked_about(tmp_path: Path) -> None:
    asked = load.load(noise="0,0.05%")
    last_sweep.remember(asked, Folder.of(tmp_path))
    text = last_sweep.recall(Folder.of(tmp_path))
    assert text is not None
    assert yaml.safe_load(text)["noise"]["levels"] == [0.0, "0.05%"]
    (tmp_path / "again.yaml").write_text(text)
    assert load.load(str(tmp_path / "again.yaml")).noise == asked.noise


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--noise", "5", "10"], "use commas: --noise 5,10"),
        (["--noise", "0,5", "10", "20"], "use commas: --noise 0,5,10,20"),
        (["--noise", "5 10"], "use commas: --noise 5,10"),
        (["--seeds", "0", "1"], "use commas: --seeds 0,1"),
        (["demo", "digits-clip"], "one FILE is read at a time"),
    ],
)
def test_a_list_with_blanks_is_answered_with_commas(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["plan", *words]) == 2
    assert remedy in capsys.readouterr().err
