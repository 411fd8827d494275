"""The walls between the rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for room in ("orchestrator", "jobs", "analysis") for path in (ROOT / room).rglob("*.py")
)
HEAVY = {"torch", "ray", "mlflow", "timm", "open_clip", "torchvision", "matplotlib", "pandas"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def offenders(package: str, allowed: set[str]) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(name.split(".")[0] == package for name in imported(path))
        and str(path.relative_to(ROOT)) not in allowed
    ]


def test_only_tracking_imports_mlflow() -> None:
    assert offenders("mlflow", {"orchestrator/tracking.py"}) == []


def test_only_the_stages_jobs_and_the_control_of_the_cluster_import_ray() -> None:
    jobs = {str(p.relative_to(ROOT)) for p in (ROOT / "jobs").rglob("job.py")}
    control = {str(p.relative_to(ROOT)) for p in (ROOT / "orchestrator/cluster").glob("*.py")}
    shared = {"jobs/remote.py", "orchestrator/executor.py"}  # what the stages' jobs have in common
    tune = {"jobs/tuning/draw.py", "jobs/tuning/tune_run.py"}  # Tune's domains, and its runs
    assert offenders("ray", jobs | control | shared | tune) == []


@pytest.mark.parametrize("room", ["jobs", "analysis"])
def test_nothing_below_imports_the_orchestrator(room: str) -> None:
    uphill = offenders("orchestrator", set())
    assert [path for path in uphill if path.startswith(room)] == []


def test_analysis_stands_alone() -> None:
    assert [path for path in offenders("jobs", set()) if path.startswith("analysis")] == []


def test_light_verbs_pay_for_no_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys; from orchestrator.cli import _run;"
        "codes = [_run(['--help']), _run(['plan']), _run(['status'])];"
        f"print('codes', codes, 'heavy', sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "codes [0, 0, 0] heavy []", result.stderr
