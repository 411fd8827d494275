"""The walls between the rooms."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from orchestrator.run.executor import STAGES

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
    shared = {"jobs/remote.py", "orchestrator/run/executor.py"}
    train = {"jobs/pretrain/process_group.py", "jobs/pretrain/nodes.py"}  # of Ray Train
    tune = {"jobs/tuning/draw.py", "jobs/tuning/tune_run.py"}  # Tune's domains, and its runs
    assert offenders("ray", jobs | control | shared | train | tune) == []


@pytest.mark.parametrize("room", ["jobs", "analysis"])
def test_nothing_below_imports_the_orchestrator(room: str) -> None:
    uphill = offenders("orchestrator", set())
    assert [path for path in uphill if path.startswith(room)] == []


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


def imported_with(name: str) -> set[str]:
    """What importing a module of ours brings in: all but what functions and type checks import."""
    found, ahead = set[str](), [name]
    while ahead:
        for node in ast.parse(NAMES[ahead.pop()].read_text()).body:
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                names = {node.module} | (below & NAMES.keys())
            else:
                continue
            ahead += (names - found) & NAMES.keys()
            found |= names
    return found


@pytest.mark.parametrize("stage", [work.partition(":")[0] for work in STAGES.values()])
def test_the_driver_and_the_helpers_of_ray_do_not_import_torch(stage: str) -> None:
    libraries = {name.split(".")[0] for name in imported_with(stage)}
    assert "pydantic" in libraries, "nothing was followed"
    assert libraries & {"torch", "timm", "open_clip", "torchvision", "safetensors"} == set()


# -- layers and circles ----------------------------------------------------------------------------

NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in MODULES
}


def reads(name: str) -> set[str]:
    """The modules of ours that a module imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = below & NAMES.keys()
            found |= modules if modules else {node.module}
    return found & NAMES.keys() - {name}


@cache
def all_reads() -> dict[str, set[str]]:
    return {name: reads(name) for name in NAMES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node: each reads itself through the others."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, ahead = set[str](), [start]
        while ahead:
            for after in graph[ahead.pop()] - seen:
                seen.add(after)
                ahead.append(after)
        reach[start] = seen
    parts = {
        frozenset(other for other in reach[name] if name in reach[other])
        for name in graph
        if name in reach[name]
    }
    return sorted(sorted(part) for part in parts)


def packages(depth: int) -> dict[str, set[str]]:
    """Which package reads which; a package is the first `depth` parts of a module's name."""

    def room(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    graph: dict[str, set[str]] = {room(name): set() for name in all_reads()}
    for name, read in all_reads().items():
        rooms = {room(other) for other in read} - {room(name)}
        # A package's own __init__ stands above and below its parts.
        graph[room(name)] |= {
            other
            for other in rooms
            if not other.startswith(f"{room(name)}.") and not room(name).startswith(f"{other}.")
        }
    return graph


def test_no_module_reads_itself_through_others() -> None:
    assert circles(all_reads()) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_package_reads_itself_through_others(depth: int) -> None:
    assert circles(packages(depth)) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(("room", "other"), [("jobs", "analysis"), ("analysis", "jobs")])
def test_the_jobs_and_the_analysis_are_strangers(room: str, other: str) -> None:
    assert [path for path in offenders(other, set()) if path.startswith(f"{room}/")] == []


def test_pixels_stay_with_images_readers_and_encoders() -> None:
    within = ("jobs/images/", "jobs/corpus/readers/", "jobs/encoders/")
    libraries = {path for name in ("PIL", "torchvision") for path in offenders(name, set())}
    size = re.compile(r"\.channels\b|\bchannels=|input\.size\b|image\.size\b|\bimage_size\b")
    naming = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.is_relative_to(ROOT / "jobs") and size.search(path.read_text())
    }
    assert [path for path in sorted(libraries | naming) if not path.startswith(within)] == []


# -- names in docstrings ---------------------------------------------------------------------------

_DOTTED = re.compile(r"`([A-Za-z_]\w*(?:[./]\w+)+)`")
_DATA = ("json", "parquet", "csv", "tsv", "md", "html", "safetensors", "yaml", "txt", "db", "css")


def _missing(name: str) -> list[str]:
    """Every `module.name` and `file.py` of a module's text that does not exist."""
    path = NAMES[name]
    text = path.read_text()
    tree = ast.parse(text)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    missing = []
    for token in _DOTTED.findall(text):
        if token.endswith(".py"):
            below = ROOT / package.replace(".", "/")
            if not (ROOT / token).exists() and not any(below.rglob(token)):
                missing.append(token)
            continue
        head, *rest = token.split(".")
        if "/" in token or rest[-1] in _DATA or head in arguments:
            continue
        if head in ("orchestrator", "jobs", "analysis"):
            missing += [] if _resolves(token) else [token]
        elif (full := imported.get(head, f"{package}.{head}")) in NAMES:
            missing += [] if _resolves(".".join([full, *rest])) else [token]
    return missing


def _resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that the module before it defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in NAMES:
            return (
                length == len(parts)
                or re.search(
                    rf"^(class|def|async def) {parts[length]}\b|^{parts[length]}\b\s*[:=]"
                    rf"|^from .* import .*\b{parts[length]}\b",
                    NAMES[module].read_text(),
                    re.MULTILINE,
                )
                is not None
            )
    return False


def test_every_name_in_a_docstring_exists() -> None:
    assert {name: missing for name in NAMES if (missing := _missing(name))} == {}


def test_a_name_that_does_not_exist_would_be_found() -> None:
    assert _resolves("jobs.contract.Failure")
    assert _resolves("jobs.contract")
    assert not _resolves("jobs.contract.Nothing")
    assert not _resolves("jobs.nothing.Failure")


# -- reading the store -----------------------------------------------------------------------------

UNCHECKED = {
    "jobs/storage/folder.py",
    "jobs/corpus/readers/source.py",  # a user's files, as the three below
    "jobs/features/columns.py",
    "jobs/features/given.py",
    "jobs/noise/source.py",
    "jobs/tasks/check.py",
    "jobs/features/parts.py",  # a step's own scratch
}


def test_stages_open_files_only_where_they_are_checked() -> None:
    """`Folder.open` gives a filesystem: what is read through it is compared with no manifest."""
    opens = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.is_relative_to(ROOT / "jobs")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "open"
    }
    assert opens - UNCHECKED == set()
