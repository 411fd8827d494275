"""The files that are sent with a submitted sweep."""

import subprocess
from pathlib import Path

import pytest

from orchestrator.cluster.working_dir import working_dir
from orchestrator.errors import UserError


def write(folder: Path, name: str, text: str = "x") -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def names(folder: Path) -> set[str]:
    return {str(file) for file in working_dir(folder).files}


def test_outside_git_stores_caches_and_environments_are_left_out(tmp_path: Path) -> None:
    for name in ("my.yaml", "tasks/a.yaml", "labels.csv"):
        write(tmp_path, name)
    for name in (
        "nml-store/store.json",
        "nml-store/pretrain/x/model.safetensors",
        "env/pyvenv.cfg",
        "env/lib/huge.so",
        ".git/config",
        ".mypy_cache/a",
        "mlruns/0/a",
        "mlflow.db",
        "mlflow.db-wal",
        "__pycache__/a.pyc",
    ):
        write(tmp_path, name)
    assert names(tmp_path) == {"my.yaml", "tasks/a.yaml", "labels.csv"}


def test_in_a_checkout_gitignore_decides(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in ("my.yaml", "data/big.bin", "new.yaml"):
        write(tmp_path, name)
    write(tmp_path, ".gitignore", "data/\n")
    subprocess.run(["git", "-C", str(tmp_path), "add", "my.yaml"], check=True)
    assert names(tmp_path) == {"my.yaml", "new.yaml", ".gitignore"}


def test_below_a_checkout_only_the_folder_itself_is_sent(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write(tmp_path, "above.yaml")
    write(tmp_path, "inner/my.yaml")
    assert names(tmp_path / "inner") == {"my.yaml"}


def test_too_many_bytes_are_refused_with_the_largest_files(tmp_path: Path) -> None:
    write(tmp_path, "small.yaml")
    write(tmp_path, "photos.tar", "x" * 3_000_000)
    with pytest.raises(UserError, match=r"photos\.tar 3 MB") as raised:
        working_dir(tmp_path, limit_mb=1)
    assert "small.yaml" in str(raised.value)


def test_the_measured_files_are_the_copied_files(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, "a/b.yaml", "hello")
    write(here, "c.yaml", "you")
    there.mkdir()
    files = working_dir(here)
    files.copy(there)
    copied = [file for file in there.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in copied) == files.bytes == 8
    assert (there / "a/b.yaml").read_text() == "hello"
