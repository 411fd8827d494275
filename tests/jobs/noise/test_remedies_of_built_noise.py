"""What `corpus verify` and `noise audit` tell their user to do works when it is done.

A corpus and a noise are built once, by the commands. Each test damages them, follows the message,
and leaves them whole.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from commands import Run

NOISE = "noise/letters/t/draw=0/level=20"
LEVEL = f"nml-store/{NOISE}"
CORPUS = "nml-store/corpus/letters"
FILE = {
    "name": "part",
    "corpus": {
        "name": "letters",
        "reader": {"kind": "imagefolder", "path": "tree"},
        "parts": {"train": 1, "validation": 0, "test": 0},
        "max_bad_share": 1,
    },
    "noise": {"kind": "transition", "name": "t", "levels": [20], "file": "m.csv"},
}


@pytest.fixture(scope="module")
def built(run_on_ray: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        path = folder / f"tree/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "tree/a/bad.png").write_bytes(b"")
    (folder / "m.csv").write_text("0.5,0.5\n0.5,0.5\n")
    (folder / "part.yaml").write_text(yaml.safe_dump(FILE))
    shows = r"has no noise step; run `nml-orch (?P<command>noise build)` first"
    found = asked(folder, run_on_ray, "noise audit part.yaml", 2, shows)
    asked(folder, run_on_ray, f"{found['command']} part.yaml", 0, "2 rows")
    return folder


def asked(folder: Path, run: Run, words: str, wanted: int, shows: str) -> re.Match[str]:
    """What a command shows, where it ends with this code."""
    code, output = run(folder, *words.split())
    assert code == wanted, output
    found = re.search(shows, " ".join(output.split()))
    assert found is not None, output
    return found


BUILD = r"`nml-orch (?P<command>\w+ build)`( or `nml-orch sweep`)? with the same options and "
REDO = rf"{BUILD}(?P<redo>--redo \S+)"


def followed(folder: Path, run: Run, found: re.Match[str]) -> None:
    words = f"{found['command']} part.yaml {found['redo']}"
    code, output = run(folder, *shlex.split(words))
    assert code == 0, output


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def lose_a_row(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    f"{CORPUS}/train-00000.parquet": Path.unlink,
    f"{CORPUS}/quarantine.parquet": cut,
    f"{CORPUS}/_index.json": Path.unlink,
}


def test_a_corpus_is_built_again_as_verify_says(built: Path, run_on_ray: Run) -> None:
    for name, damage in DAMAGE.items():  # with the last, no other can be looked at
        damage(built / name)
        line = r"it lists the shards|lists it|it cannot be read \(.*\)"
        asked(built, run_on_ray, "corpus verify part.yaml", 1, rf"({line}); build the corpus again")
    found = asked(built, run_on_ray, "corpus verify part.yaml", 1, rf"{REDO} builds it again")
    followed(built, run_on_ray, found)
    asked(built, run_on_ray, "corpus verify part.yaml", 0, "as built")


def test_other_findings_of_verify_go_when_they_are_followed(built: Path, run: Run) -> None:
    verify = "corpus verify part.yaml"
    (built / CORPUS / "stray").touch()
    found = asked(built, run, verify, 1, r"unlisted (?P<name>\w+): _index\.json .*; remove it")
    (built / CORPUS / found["name"]).unlink()
    asked(built, run, verify, 0, "as built")
    image = built / "tree/a/0.png"
    image.rename(built / "kept")
    asked(built, run, verify, 1, "source changed .*, or restore the old data")
    (built / "kept").rename(image)
    asked(built, run, verify, 0, "as built")
    found = asked(built, run, "corpus verify", 0, "not looked at: name the experiment FILE")
    asked(built, run, "corpus verify part.yaml", 0, r"quarantine$")


def test_a_new_version_of_a_source_is_built_with_force(
    built: Path, tmp_path: Path, run_on_ray: Run
) -> None:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    images = [tmp_path / f"tree/a/{number}.png" for number in (0, 2)]
    how = r"give the reader another `(?P<field>version)` and build with (?P<option>--force)"
    images[0].write_bytes(images[1].read_bytes())  # of as many bytes
    asked(tmp_path, run_on_ray, "corpus verify part.yaml", 0, rf"source newer .*{how}")
    Image.new("RGB", (9, 9)).save(images[0])
    found = asked(tmp_path, run_on_ray, "corpus verify part.yaml", 1, rf"source changed .*{how}")
    version = f"--set corpus.reader.{found['field']}='2'"
    words = f"corpus build part.yaml {version} {found['option']}"
    asked(tmp_path, run_on_ray, words, 0, "quarantine")
    asked(tmp_path, run_on_ray, f"corpus verify part.yaml {version}", 0, "as built")


def test_a_level_is_built_again_as_audit_says(built: Path, run_on_ray: Run) -> None:
    lose_a_row(built / LEVEL / "changed.parquet")
    shows = rf"1 missing; row .* is not listed {NOISE}: {REDO} builds it again"
    found = asked(built, run_on_ray, "noise audit part.yaml", 1, shows)
    followed(built, run_on_ray, found)
    asked(built, run_on_ray, "noise audit part.yaml", 0, "kept in")


def test_a_damaged_level_is_deleted_and_built_again(built: Path, run_on_ray: Run) -> None:
    cut(built / LEVEL / "overlay.json")
    shows = r"DIFFERS \S+: (?P<file>\S+) cannot be used .*; delete its folder and build the noise"
    found = asked(built, run_on_ray, "noise audit part.yaml", 1, shows)
    shutil.rmtree(Path(found["file"]).parent)
    asked(built, run_on_ray, "noise build part.yaml", 0, "2 rows")
    asked(built, run_on_ray, "noise audit part.yaml", 0, "kept in")


def test_a_corpus_that_noise_cannot_be_derived_from_is_built_again(
    built: Path, run_on_ray: Run
) -> None:
    cut(built / CORPUS / "train-00000.parquet")
    shows = rf"cannot be derived again: train-00000\.parquet of corpus/letters .*: {REDO}"
    found = asked(built, run_on_ray, "noise audit part.yaml", 2, shows)
    followed(built, run_on_ray, found)
    asked(built, run_on_ray, "noise audit part.yaml", 0, "kept in")


def test_noise_of_a_file_is_audited_by_the_experiment_file(built: Path, run: Run) -> None:
    asked(built, run, "noise audit", 2, r"\(its file, say\); name its experiment FILE")
    asked(built, run, "noise audit part.yaml", 0, "kept in")


def test_an_experiment_without_noise_builds_its_corpus(built: Path, run_on_ray: Run) -> None:
    (built / "corpus.yaml").write_text(yaml.safe_dump({k: FILE[k] for k in ("name", "corpus")}))
    shows = r"noise is missing; give kind, name and levels, or `nml-orch (?P<command>corpus build)`"
    found = asked(built, run_on_ray, "noise build corpus.yaml", 2, shows)
    asked(built, run_on_ray, f"{found['command']} corpus.yaml", 0, "corpus/letters")
