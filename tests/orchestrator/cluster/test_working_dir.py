"""What a submitted sweep takes along."""

import subprocess
from pathlib import Path

import pytest

from orchestrator.cluster.working_dir import pack
from orchestrator.errors import UserError


def write(folder: Path, name: str, text: str = "x") -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def names(folder: Path) -> set[str]:
    return {str(file) for file in pack(folder).files}


def test_outside_git_stores_caches_and_environments_stay(tmp_path: Path) -> None:
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


def test_below_a_checkout_only_the_folder_itself_goes(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write(tmp_path, "above.yaml")
    write(tmp_path, "inner/my.yaml")
    assert names(tmp_path / "inner") == {"my.yaml"}


def test_a_parcel_above_the_limit_names_its_largest_files(tmp_path: Path) -> None:
    write(tmp_path, "small.yaml")
    write(tmp_path, "photos.tar", "x" * 3_000_000)
    with pytest.raises(UserError, match=r"photos\.tar 3 MB") as raised:
        pack(tmp_path, limit_mb=1)
    assert "small.yaml" in str(raised.value)


def test_what_is_measured_is_what_is_copied(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, "a/b.yaml", "hello")
    write(here, "c.yaml", "you")
    there.mkdir()
    parcel = pack(here)
    parcel.copy(there)
    copied = [file for file in there.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in copied) == parcel.bytes == 8
    assert (there / "a/b.yaml").read_text() == "hello"
