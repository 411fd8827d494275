"""The documentation is whole and true: it builds, names every field and column, and its text holds.

The site is built once, strictly: a broken link is an error.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from analysis.columns import COLUMNS, TABLES
from orchestrator.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))
from reference import fields, models  # noqa: E402  (of the site: docs/reference.py)

pytestmark = pytest.mark.slow

DOCS_LINES = {  # what commands.md has people add to the start file of a shell
    shell: line.replace("\\|", "|")
    for shell, line in re.findall(
        r"^\| (bash|zsh|fish)\b.*\| `([^`]+)` \|$", (DOCS / "commands.md").read_text(), re.MULTILINE
    )
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("sphinx") is None:
        pytest.skip("the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    words = ["-W", "--keep-going", "-q", "-d", str(folder / "read"), str(DOCS), str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


def text_of(page: Path) -> str:
    """The words of a page, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())


def test_the_site_has_every_field_command_and_column(site: Path) -> None:
    files = text_of(site / "reference/experiment.html") + text_of(site / "reference/task.html")
    for model in models():
        for name, field in fields(model):
            assert f" {name} " in files, (model, name)
            first = re.split(r"[`*|<]", field.description or "")[0].split()
            assert " ".join(first) in files, (model, name)
    commands = text_of(site / "commands.html")
    assert all(f"nml-orch {name} " in commands for name in COMMANDS)
    tables = text_of(site / "reference/tables.html")
    assert all(f" {column} " in tables for table in TABLES for column in table.columns)


def test_every_page_is_in_the_contents(site: Path) -> None:
    contents = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix(".html").as_posix()
        report = name.startswith("results/") and name != "results/README.html"
        assert report or name == "index.html" or f'href="{name}"' in contents, name


def test_no_field_is_without_a_description() -> None:
    found = [(model.__name__, name, field) for model in models() for name, field in fields(model)]
    assert len(found) > 300
    assert not [(model, name) for model, name, field in found if not field.description]


def test_every_column_has_a_meaning_and_no_meaning_is_left_over() -> None:
    described = {name for table in TABLES for name, _, what in table.described() if what}
    assert described == {name for table in TABLES for name in table.columns}
    taken = [(table, name) for table in TABLES for name in table.columns if name not in table.other]
    assert set(COLUMNS) == {name for _, name in taken}
    assert all(set(table.other) <= set(table.columns) for table in TABLES)


def sentences() -> Iterator[str]:
    """Every text in the code, with `…` for what is put into it."""
    for package in ("orchestrator", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_quoted_message_is_one_of_the_codes() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### (`+) ?(.+?) ?\1$", page, re.MULTILINE)
    assert len(quoted) == page.count("\n### ") > 20
    known = list(sentences())
    for _, message in quoted:
        wanted = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(wanted.search(one) for one in known), message


def test_the_examples_for_slurm_and_kubernetes_are_well_formed(tmp_path: Path) -> None:
    script = ROOT / "cluster/slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = re.findall(r"^#SBATCH (--[\w-]+)=\S+$", script.read_text(), re.MULTILINE)
    assert {"--nodes", "--ntasks-per-node", "--time"} <= set(options)
    job = yaml.safe_load((ROOT / "cluster/kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    workers = (group["template"] for group in spec["workerGroupSpecs"])
    images = {
        container["image"]
        for template in (spec["headGroupSpec"]["template"], *workers)
        for container in template["spec"]["containers"]
    }
    assert len(images) == 1  # one version of everything on every node
    assert spec["rayVersion"] in (ROOT / "cluster.yaml").read_text()


def test_bash_completes_commands_options_and_experiments(tmp_path: Path) -> None:
    script = [DOCS_LINES["bash"]]
    asked = ("nml-orch sw", "nml-orch sweep --see", "nml-orch plan de")
    for words in asked:
        script += ["COMPREPLY=()", f"COMP_WORDS=({words})", f"COMP_CWORD={words.count(' ')}"]
        script += ["_nml_orch_completion nml-orch", 'echo "${COMPREPLY[@]}"']
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["sweep", "--seeds", "decide demo"]


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef nml-orch"), ("fish", "function")])
def test_the_other_shells_completions_are_printed(shell: str, begins: str) -> None:
    variable = f"{shell}_source"
    assert f"_NML_ORCH_COMPLETE={variable} nml-orch" in DOCS_LINES[shell]
    done = subprocess.run(
        [sys.executable, "-m", "nml_orch"],
        env={**os.environ, "_NML_ORCH_COMPLETE": variable},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.lstrip().startswith(begins)


def test_the_citation_is_complete_and_the_readmes_says_the_same() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "abstract"} <= set(cited)
    assert (cited["title"], cited["version"]) == (project["name"], project["version"])
    readme = (ROOT / "README.md").read_text().partition("## Citation")[2]
    assert {one["url"] for one in cited["references"]} == set(project["urls"].values())
    for one in cited["references"]:
        names = [f"{author['family-names']}, {author['given-names']}" for author in one["authors"]]
        assert re.sub(r"\s+", " ", " and ".join(names)) in re.sub(r"\s+", " ", readme)
        assert all(str(one[field]) in readme for field in ("title", "year", "url"))
        assert one.get("doi", "") in readme
