"""`docs/tutorial.md` is true: its files and commands lead from a folder of images to a report.

The commands run as the page gives them, on fewer images, with shorter training and one replicate.
"""

import re
import runpy
from pathlib import Path

import pytest

from commands import UNTRACKED, Run

PAGE = Path(__file__).resolve().parents[1] / "docs/tutorial.md"
FILE = re.compile(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", re.DOTALL)
SHORTER = [
    *UNTRACKED,
    *("--noise", "0,40", "--seeds", "0"),
    *("--set", "pretrain.recipe.schedule.epochs=2"),
    *("--set", "tuning.configurations=1", "--set", "tuning.epochs=1"),
]


@pytest.mark.slow
def test_the_tutorial_leads_from_images_to_a_report(
    run_on_ray: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text()
    files = dict(FILE.findall(text))
    assert set(files) == {
        *("make_photos.py", "mine.yaml", "tasks/photos.yaml", "tasks/photos-rotated.yaml")
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content.replace("digits.images", "digits.images[:300]"))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("make_photos.py")

    printed = {}
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            _, *words = line.split()
            more = SHORTER if words[0] in ("plan", "sweep", "status", "report") else []
            code, output = run_on_ray(tmp_path, *words, *more)
            assert code == 0, (line, output)
            printed[words[0]] = output
    assert list(printed) == ["corpus", "tasks", "plan", "sweep", "status", "report"]
    assert "10 classes" in printed["corpus"]
    assert "any-noise-hurts-ood" in printed["plan"]  # registered
    page = (tmp_path / "mine/report.html").read_text()
    assert "What do wrong labels in pre-training do to my photos?" in page
    assert "Of 2 registered claims" in page
