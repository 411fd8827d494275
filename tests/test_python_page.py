"""`docs/python.md` is true: its scripts run, print what it says, and pass `mypy --strict`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs/python.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)

UNSEEN = (
    "huggingface_hub.*,matplotlib.*,mlflow.*,open_clip.*,openai.*,optuna.*,peft.*,ray.*,"
    "safetensors.*,sklearn.*,timm.*,torchvision.*,transformers.*"
)
"""Libraries of whose types the scripts see nothing. To read them takes most of mypy's time."""

EACH = """
import contextlib, io, json, pathlib, runpy, sys
printed = []
for script in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(script, run_name="__main__")
    printed.append(said.getvalue())
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with the page's scripts and nothing else."""
    folder = tmp_path_factory.mktemp("user")
    for number, (script, _) in enumerate(blocks()):
        (folder / f"script_{number}.py").write_text(script)
    return folder


def blocks() -> list[tuple[str, str]]:
    """The page's scripts, and what each prints."""
    found = BLOCK.findall(PAGE.read_text())
    assert len(found) == PAGE.read_text().count("```python"), "a script lacks its output"
    return found


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    scripts = sorted(path.name for path in folder.glob("*.py"))
    return subprocess.run(
        [sys.executable, *words, *scripts],
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
        },  # threads wait for one another on a busy machine
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_each_script_of_the_page_prints_what_the_page_says(folder: Path) -> None:
    done = run(folder, "-c", EACH)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [printed for _, printed in blocks()]


@pytest.mark.slow
def test_a_users_types_are_checked(folder: Path) -> None:
    (folder / "mypy.ini").write_text(f"[mypy]\n[mypy-{UNSEEN}]\nfollow_imports = skip\n")
    done = run(folder, "-m", "mypy", "--strict")
    assert done.returncode == 0, done.stdout
