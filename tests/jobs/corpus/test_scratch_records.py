"""Damaged records in the scratch of a build: they are made again, and the shards are the same."""

from collections.abc import Callable
from pathlib import Path

import mutations
import pytest

from jobs.contract import Outcome
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]

ALL_TRAIN = {"train": 1, "validation": 0, "test": 0}


@pytest.mark.parametrize("damage", [b"", b'{"runs": [{"name": 3}]}', None])
def test_a_damaged_record_of_a_build_is_made_again(
    tmp_path: Path, picture: Picture, build: Build, damage: mutations.Damage
) -> None:
    for number in range(4):
        (tmp_path / "tree/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"tree/a/{number}.jpg").write_bytes(picture(number))
    reader = {"kind": "imagefolder", "path": str(tmp_path / "tree")}
    corpus = Corpus.model_validate({"name": "c", "parts": ALL_TRAIN, "reader": reader})
    output, outcome = build(corpus, tmp_path)
    written = {name: output.read_bytes(name) for name, _ in output.files()}
    damaged = [*(tmp_path / "scratch").glob("*.json")]
    assert {path.name for path in damaged} >= {"survey.json", "unit-000000.json"}
    kept = {path: path.read_bytes() for path in damaged}
    for path in damaged[: len(damaged) // 2] if damage else damaged:
        mutations.put(path, damage)
    again, same = build(corpus, tmp_path)
    assert same == outcome
    assert {name: again.read_bytes(name) for name, _ in again.files()} == written
    assert {path: path.read_bytes() for path in damaged} == kept
