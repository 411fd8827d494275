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
    assert offenders("mlflow", {"orchestrator/tracking/mlflow.py"}) == []


def test_only_the_stages_jobs_and_the_control_of_the_cluster_import_ray() -> None:
    jobs = {str(p.relative_to(ROOT)) for p in (ROOT / "jobs").rglob("job.py")}
    control = {str(p.relative_to(ROOT)) for p in (ROOT / "orchestrator/cluster").glob("*.py")}
    shared = {
        "jobs/remote.py",
        "orchestrator/run/executor.py",
    }  # what the stages' jobs have in common
    tune = {"jobs/tuning/draw.py", "jobs/tuning/tune_run.py"}  # Tune's domains, and its runs
    assert offenders("ray", jobs | control | shared | tune) == []


@pytest.mark.parametrize("room", ["jobs", "analysis"])
def test_nothing_below_imports_the_orchestrator(room: str) -> None:
    uphill = offenders("orchestrator", set())
    assert [path for path in uphill if path.startswith(room)] == []


@pytest.mark.parametrize(("room", "other"), [("analysis", "jobs"), ("jobs", "analysis")])
def test_jobs_and_analysis_are_strangers(room: str, other: str) -> None:
    assert [path for path in offenders(other, set()) if path.startswith(f"{room}/")] == []


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def graph(room: str) -> dict[str, set[str]]:
    """Each module of a room -> the room's modules it imports, for types and in functions too."""
    paths = {module(path): path for path in MODULES if path.relative_to(ROOT).parts[0] == room}
    found: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name].update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                modules = named & paths.keys()
                found[name] |= modules if modules == named else {node.module, *modules}
        found[name] &= paths.keys()
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A circle of names that lead to one another, the first once more at its end; else empty."""
    above: list[str] = []
    done: set[str] = set()

    def walk(name: str) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        above.append(name)
        found = next((met for other in sorted(edges[name]) if (met := walk(other))), [])
        above.pop()
        done.add(name)
        return found

    return next((met for name in sorted(edges) if (met := walk(name))), [])


def packages(edges: dict[str, set[str]], depth: int = 2) -> dict[str, set[str]]:
    """The same between packages: of a module `a.b.c` that is `a.b`, of a module `a.b` it is `a`."""
    paths = {module(path): path for path in MODULES}

    def package(name: str) -> str:
        parts = name.split(".")
        inside = parts if paths[name].name == "__init__.py" else parts[:-1]
        return ".".join(inside[:depth])

    found: dict[str, set[str]] = {package(name): set() for name in edges}
    for name, others in edges.items():
        found[package(name)] |= {package(other) for other in others} - {package(name)}
    return found


@pytest.mark.parametrize("room", ["analysis"])
def test_no_modules_or_packages_import_one_another_in_a_circle(room: str) -> None:
    edges = graph(room)
    assert sum(map(len, edges.values())) > 20
    assert circle(edges) == []
    assert circle(packages(edges)) == []


def test_a_circle_is_found_where_there_is_one() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


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
