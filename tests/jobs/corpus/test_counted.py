"""Every member that was read is a row, a counted bad row or a counted note."""

import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.contract import Outcome, StageError
from jobs.corpus.shards import Index, read_part
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]

ALL_TRAIN = {"train": 1, "validation": 0, "test": 0}
NAMES = st.lists(
    st.sampled_from(["a", "b", "a.v2", "c.d.e", ".a", "._a", "x/a", "__MACOSX/a", ".git/a", "f.1"]),
    unique=True,
    min_size=1,
)


def corpus(path: Path, kind: str = "webdataset", **fields: object) -> Corpus:
    reader = {"kind": kind, "path": str(path), **fields}
    return Corpus.model_validate(
        {"name": "c", "reader": reader, "parts": ALL_TRAIN, "max_bad_share": 1}
    )


def keys(folder: Folder) -> list[str]:
    return sorted(read_part(folder, "train", ["key"])["key"].to_pylist())


def bad(folder: Folder) -> dict[str, str]:
    rows = folder.read_table("quarantine.parquet").to_pylist()
    return {row["key"]: row["reason"] for row in rows}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES)
def test_every_image_of_a_tar_is_a_row_a_bad_row_or_a_note(
    tmp_path_factory: pytest.TempPathFactory,
    picture: Picture,
    write_tar: WriteTar,
    build: Build,
    names: list[str],
) -> None:
    root = tmp_path_factory.mktemp("tar")
    members = {}
    for number, name in enumerate(sorted(names)):
        members |= {f"{name}.jpg": picture(number), f"{name}.txt": b"a cat"}
    write_tar(root / "0.tar", members)
    try:
        folder, outcome = build(corpus(root), root / "o")
    except StageError as error:
        assert "rows are bad" in str(error) or "has no rows" in str(error)  # noqa: PT017
        return
    index = Index.read(folder)
    hidden = [name for name in names if name.startswith((".", "__MACOSX"))]
    assert index.notes.get("hidden_member", 0) == 2 * len(hidden)
    assert outcome.counts.get("note_hidden_member", 0) == 2 * len(hidden)
    rows = keys(folder)
    stems = {name for name in names if name not in hidden and "." not in name}
    assert set(rows) == stems
    dotted = {name for name in names if name not in hidden and "." in name}
    cut = {name for name in dotted if name.partition(".")[0] not in stems}
    assert bad(folder) == dict.fromkeys(cut, "dotted_stem")
    # The members of `a.v2` beside the sample `a` are parts of it that nobody asked for.
    assert index.notes.get("unused_member", 0) == 2 * len(dotted)


def test_members_after_the_end_of_a_tar_are_read(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, build: Build
) -> None:
    parts = []
    for number in range(3):
        members = {f"{number}.jpg": picture(number), f"{number}.txt": b"a cat"}
        parts.append(write_tar(tmp_path / f"parts/{number}.tar", members).read_bytes())
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined/0.tar").write_bytes(b"".join(parts))
    folder, _ = build(corpus(tmp_path / "joined"), tmp_path / "o")
    assert keys(folder) == ["0", "1", "2"]
    for number, tail in enumerate((b"junk", b"junk" * 1000, b"\0" * 700 + b"<html>" * 100)):
        (tmp_path / "joined/0.tar").write_bytes(parts[0] + tail)
        with pytest.raises(StageError, match=r"is not a tar, or is damaged|before its end mark"):
            build(corpus(tmp_path / "joined"), tmp_path / f"o{number}")
    (tmp_path / "joined/0.tar").write_bytes(parts[0] + b"\0" * 12_345)  # zeros are no member
    folder, _ = build(corpus(tmp_path / "joined"), tmp_path / "zeros")
    assert keys(folder) == ["0"]


def test_a_tar_made_on_a_mac_is_read(tmp_path: Path, picture: Picture, build: Build) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number in range(3):
            for end, data in (("jpg", picture(number)), ("txt", b"a cat")):
                for name, content in ((f"./._{number}.{end}", b"x"), (f"./{number}.{end}", data)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    folder, outcome = build(corpus(tmp_path), tmp_path / "o")
    assert keys(folder) == ["0", "1", "2"]
    assert outcome.counts["note_hidden_member"] == 6
    assert outcome.counts["quarantined"] == 0


def test_a_tar_whose_samples_are_torn_apart_is_sorted_by_the_command_that_the_error_gives(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, build: Build
) -> None:
    images = {f"{n}.jpg": picture(n) for n in range(3)}
    path = write_tar(tmp_path / "tars/0.tar", images | {f"{n}.txt": b"a cat" for n in range(3)})
    with pytest.raises(StageError, match="members of sample '0' do not follow") as caught:
        build(corpus(path.parent), tmp_path / "o")
    command = str(caught.value).partition("sort the tar: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=path.parent)
    folder, _ = build(corpus(path.parent), tmp_path / "again")
    assert keys(folder) == ["0", "1", "2"]


def test_files_of_an_image_folder_that_are_no_rows_are_counted(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    root = tmp_path / "root"
    for name in (
        "cat/a.jpg",
        "cat/._a.jpg",
        "cat/.DS_Store",
        "cat/.cache/b.jpg",
        "dog/b.jpg",
        "dog/__MACOSX/b.jpg",
        "LICENSE.txt",
        "stray.jpg",
        ".hidden",
        "__MACOSX/cat/a.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(0))
    folder, outcome = build(corpus(root, "imagefolder"), tmp_path / "o")
    assert keys(folder) == ["cat/a.jpg", "dog/b.jpg"]
    assert outcome.counts["note_hidden_file"] == 6
    assert outcome.counts["note_file_outside_classes"] == 2


def test_hidden_files_beside_the_sources_files_are_passed_over(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, build: Build
) -> None:
    write_tar(tmp_path / "tars/0.tar", {"a.jpg": picture(0), "a.txt": b"a cat"})
    (tmp_path / "tars/._0.tar").write_bytes(b"Mac OS X")
    folder, _ = build(corpus(tmp_path / "tars"), tmp_path / "o")
    assert keys(folder) == ["a"]


def two_parts(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, stems: Sequence[str]
) -> dict[str, object]:
    for part in ("train", "val"):
        members: dict[str, bytes] = {}
        for number, stem in enumerate(stems):
            members |= {f"{stem}.jpg": picture(number), f"{stem}.txt": b"a cat"}
        write_tar(tmp_path / part / "00000.tar", members)
    return {
        "name": "c",
        "reader": {"kind": "webdataset", "path": str(tmp_path / "train")},
        "parts": {
            "train": 1,
            "validation": {"kind": "webdataset", "path": str(tmp_path / "val")},
            "test": 0,
        },
    }


def test_parts_with_the_same_keys_are_told_apart_by_the_field_that_the_error_names(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, build: Build
) -> None:
    fields = two_parts(tmp_path, picture, write_tar, ["a", "b"])
    with pytest.raises(StageError, match="the parts train and validation have the same") as caught:
        build(Corpus.model_validate(fields), tmp_path / "o")
    assert "set corpus.parts.validation.key_prefix: validation/" in str(caught.value)
    fields["parts"]["validation"]["key_prefix"] = "validation/"  # type: ignore[index]
    folder, _ = build(Corpus.model_validate(fields), tmp_path / "again")
    assert keys(folder) == ["a", "b"]
    found = read_part(folder, "validation", ["key"])["key"].to_pylist()
    assert sorted(found) == ["validation/a", "validation/b"]


def test_tars_with_the_same_keys_are_told_apart_by_the_field_that_the_error_names(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, build: Build
) -> None:
    for tar in ("0", "1"):
        write_tar(tmp_path / f"tars/{tar}.tar", {"a.jpg": picture(0), "a.txt": b"a cat"})
    with pytest.raises(StageError, match=r"corpus\.reader\.tar_in_key: true"):
        build(corpus(tmp_path / "tars"), tmp_path / "o")
    folder, _ = build(corpus(tmp_path / "tars", tar_in_key=True), tmp_path / "again")
    assert keys(folder) == ["0.tar/a", "1.tar/a"]


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (
            "path;label\na.jpg;cat\n",
            {},
            'no column .label..*path;label; set `delimiter: ";"',
        ),
        ("path\tlabel\na.jpg\tcat\n", {}, r'set `delimiter: "\\t"`'),
        (
            "path,class\na.jpg,cat\n",
            {},
            "no column 'label'; its first line gives the columns",
        ),
        ("a.jpg,cat\n", {}, "name the columns in `columns` if it has none"),
        ("path,label\nx\\a.jpg,cat\n", {}, r"x\\a.jpg: no file at .*; its path has back-slashes"),
        ("path,label\nb.jpg,cat\n", {}, "1 no_image .first: b.jpg: no file at .*/b.jpg"),
        ("path,label\na.jpg,cow\n", {"classes": ["cat"]}, "the label 'cow' is none of the 1 class"),
    ],
)
def test_a_table_that_does_not_apply_says_what_was_found(
    tmp_path: Path,
    picture: Picture,
    build: Build,
    content: str,
    fields: dict[str, object],
    message: str,
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "t.csv").write_text(content)
    table = corpus(tmp_path / "t.csv", "table", label="label", **fields)
    with pytest.raises(StageError, match=message):
        build(table, tmp_path / "o")


def test_a_utf_16_table_is_said(tmp_path: Path, build: Build) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / "t.csv").write_bytes("path,label\na.jpg,cat\n".encode(encoding))
        with pytest.raises(StageError, match="probably UTF-16; convert it"):
            build(corpus(tmp_path / "t.csv", "table", label="label"), tmp_path / "o")


def test_notes_are_added_up_over_units(tmp_path: Path, picture: Picture, build: Build) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "r" / name).mkdir(parents=True)
        (tmp_path / "r" / name / "i.jpg").write_bytes(picture(0))
        (tmp_path / "r" / name / ".x").write_bytes(b"")
    folder, _ = build(corpus(tmp_path / "r", "imagefolder"), tmp_path / "o")
    assert Counter(Index.read(folder).notes) == {"hidden_file": 3}
