"""Input that has no end, waits for ever or grows without limit is refused, at once and in words."""

import gzip
import io
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import Outcome, StageError
from jobs.corpus.readers import source, tar
from jobs.corpus.readers.source import contents
from jobs.corpus.spec import Corpus
from jobs.encoders import weights
from jobs.noise.source import Source
from jobs.storage import bounded
from jobs.storage.folder import Folder
from jobs.tasks import registry
from orchestrator.cluster import launch
from orchestrator.errors import UserError
from orchestrator.experiment.load import load

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]

NOT_A_FILE = "a FIFO, a device or a socket"


def corpus(reader: Mapping[str, object]) -> Corpus:
    parts = {"train": 1, "validation": 0, "test": 0}
    fields = {"name": "c", "parts": parts, "max_bad_share": 1, "reader": reader}
    return Corpus.model_validate(fields)


def quarantine(folder: Folder) -> dict[str, str]:
    rows = folder.read_table("quarantine.parquet").to_pylist()
    return {row["key"]: row["reason"] for row in rows}


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Paths that exist and are no files: a FIFO, devices, links to these, a socket."""
    folder = tmp_path / "odd"
    folder.mkdir()
    os.mkfifo(folder / "fifo.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "fifo-link.jpg").symlink_to("fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            listening.bind("socket.jpg")
        finally:
            os.chdir(before)
        yield {path.name: path for path in folder.iterdir()} | {"zero": Path("/dev/zero")}


def test_paths_of_a_table_that_are_no_files_are_quarantined(
    tmp_path: Path, odd: dict[str, Path], picture: Picture, build: Build
) -> None:
    (tmp_path / "good.jpg").write_bytes(picture(0))
    names = [f"odd/{name}" for name in odd if name != "zero"]
    lines = ["path,caption", "good.jpg,a", *(f"{name},a" for name in names)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    reader = {"kind": "table", "path": str(tmp_path / "t.csv"), "caption": "caption"}
    folder, outcome = build(corpus(reader), tmp_path / "o")
    assert quarantine(folder) == dict.fromkeys(names, "not_a_file")
    assert outcome.counts["bad_not_a_file"] == 4
    (tmp_path / "t.csv").write_text("path,caption\ngood.jpg,a\nzero,a\n")
    with pytest.raises(StageError, match="1 not_a_file"):
        build(corpus({**reader, "root": "/dev"}), tmp_path / "p")


def test_entries_of_an_image_folder_that_are_no_files_are_quarantined(
    tmp_path: Path, odd: dict[str, Path], picture: Picture, build: Build
) -> None:
    (tmp_path / "odd/good.jpg").write_bytes(picture(0))
    (tmp_path / "root").mkdir()
    (tmp_path / "odd").rename(tmp_path / "root/class")
    folder, _ = build(corpus({"kind": "imagefolder", "path": str(tmp_path / "root")}), tmp_path)
    names = [f"class/{name}" for name in odd if name != "zero"]
    assert quarantine(folder) == dict.fromkeys(names, "not_a_file")


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset", "parquet", "table", "ilsvrc_tar"])
@pytest.mark.parametrize("name", ["fifo.jpg", "zero.jpg", "fifo-link.jpg", "socket.jpg", "zero"])
def test_a_source_that_is_no_file_is_refused(
    odd: dict[str, Path], build: Build, tmp_path: Path, kind: str, name: str
) -> None:
    reader: dict[str, object] = {"kind": kind, "path": str(odd[name])}
    if kind in ("parquet", "table"):
        reader["caption"] = "caption"
    with pytest.raises(StageError, match=f"{NOT_A_FILE}; name a file or a folder"):
        build(corpus(reader), tmp_path)


@pytest.mark.parametrize(("kind", "end"), [("webdataset", ".tar"), ("parquet", ".parquet")])
def test_a_folder_with_something_else_among_its_files_is_refused(
    tmp_path: Path, build: Build, kind: str, end: str
) -> None:
    os.mkfifo(tmp_path / f"a{end}")
    reader = {"kind": kind, "path": str(tmp_path), "caption": "txt"}
    with pytest.raises(StageError, match=f"a{end} is {NOT_A_FILE}; remove it"):
        build(corpus(reader), tmp_path / "o")


NAMED_FILES: dict[str, Callable[[str], object]] = {
    "class names": source.text,
    "noise digest": lambda path: Source(path, None).digest(),
    "noise file": lambda path: Source(path, None).bytes(),
    "noise CSV": lambda path: Source(path, None).table(["key"]),
    "noise Parquet": lambda path: list(Source(path, None).batches(["key"], 1)),
    "weights": weights.read,
    "experiment": load,
    "cluster file": lambda path: launch.load(Path(path)),
}


@pytest.mark.parametrize("what", NAMED_FILES)
def test_a_named_file_that_is_no_file_is_one_sentence(odd: dict[str, Path], what: str) -> None:
    for path in odd.values():
        with pytest.raises((StageError, UserError), match=NOT_A_FILE) as caught:
            NAMED_FILES[what](str(path))
        assert "\n" not in str(caught.value)


def test_a_task_file_that_is_a_fifo_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(registry.TaskError, match=NOT_A_FILE):
        registry.load("mine", [str(tmp_path)])


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, but of bytes that a test can write."""
    monkeypatch.setattr(bounded, "ALLOWANCE", 1 << 20)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["webdataset", "table", "ilsvrc_tar", "noise"])
def test_what_grows_a_thousandfold_is_refused(
    tmp_path: Path, build: Build, picture: Picture, kind: str
) -> None:
    name = {"table": "t.csv.gz", "noise": "t.csv.gz"}.get(kind, "t.tar.gz")
    stream = io.BytesIO()
    if kind in ("webdataset", "ilsvrc_tar"):
        with tarfile.open(fileobj=stream, mode="w:gz") as packed:
            for number, size in enumerate([9, 30 << 20]):
                info = tarfile.TarInfo(f"val_{number + 1:08d}.jpg")
                info.size = size
                packed.addfile(info, io.BytesIO(bytes(size)))
    else:
        stream.write(gzip.compress(b"key,path,caption\n" + b"a,b,c\n" * (5 << 20), 9))
    (tmp_path / name).write_bytes(stream.getvalue())
    if kind == "noise":
        with pytest.raises(StageError, match="100 times its size") as caught:
            Source(str(tmp_path / name), None).table(["key"])
    else:
        (tmp_path / "synsets").write_text("1 n01 a\n")
        (tmp_path / "truth").write_text("1\n1\n")
        reader: dict[str, object] = {"kind": kind, "path": str(tmp_path / name)}
        if kind == "table":
            reader |= {"caption": "caption"}
        if kind == "ilsvrc_tar":
            reader |= {"synsets": str(tmp_path / "synsets")}
            reader |= {"ground_truth": str(tmp_path / "truth")}
        with pytest.raises(StageError, match="100 times its size") as caught:
            build(corpus(reader), tmp_path / "o")
        assert "decompress it yourself" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small_limits")
def test_a_compressed_tar_of_pictures_is_read_to_its_end(
    tmp_path: Path, picture: Picture, build: Build, write_tar: WriteTar
) -> None:
    members = {}
    for number in range(300):
        members |= {f"{number}.jpg": picture(number) + bytes(9_000), f"{number}.txt": b"a cat"}
    write_tar(tmp_path / "0.tar.gz", members)  # 3 MB, above the allowance, from 1/20 of that
    reader = {"kind": "webdataset", "path": str(tmp_path)}
    _, outcome = build(corpus(reader), tmp_path / "o")
    assert outcome.counts["rows_train"] == 300


def test_a_file_or_member_that_is_too_large_is_quarantined(
    tmp_path: Path,
    picture: Picture,
    build: Build,
    write_tar: WriteTar,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (source, tar):
        monkeypatch.setattr(module, "IMAGE_BYTES", 1 << 20)
    (tmp_path / "root/class").mkdir(parents=True)
    (tmp_path / "root/class/good.jpg").write_bytes(picture(0))
    with (tmp_path / "root/class/large.jpg").open("wb") as sparse:
        sparse.truncate((1 << 20) + 1)
    folder, _ = build(
        corpus({"kind": "imagefolder", "path": str(tmp_path / "root")}), tmp_path / "a"
    )
    assert quarantine(folder) == {"class/large.jpg": "too_large"}
    write_tar(tmp_path / "t/0.tar", {"a.jpg": picture(0), "a.txt": b"a cat"})
    info = tarfile.TarInfo("b.jpg")
    info.size = (1 << 20) + 512
    used = len((tmp_path / "t/0.tar").read_bytes().rstrip(b"\0"))
    with (tmp_path / "t/0.tar").open("r+b") as file:
        at = file.seek(-(-used // 512) * 512)  # where the end mark was
        file.write(info.tobuf())
        file.truncate(at + 512 + info.size + 1024)
    folder, _ = build(corpus({"kind": "webdataset", "path": str(tmp_path / "t")}), tmp_path / "b")
    assert quarantine(folder) == {"b": "too_large"}


def test_a_text_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for name in ("long.yaml", "long.txt"):
        with (tmp_path / name).open("wb") as sparse:
            sparse.truncate(bounded.TEXT_BYTES + 1)
    with pytest.raises(UserError, match="more than 64 MB"):
        load(str(tmp_path / "long.yaml"))
    with pytest.raises(StageError, match="too many for a list"):
        source.text(str(tmp_path / "long.txt"))


def test_a_fifo_with_a_writer_is_not_read_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    writer = threading.Thread(target=lambda: (tmp_path / "a.jpg").open("wb").close(), daemon=True)
    writer.start()
    assert list(contents(str(tmp_path), ["a.jpg"])) == [(None, "not_a_file")]


def test_parquet_is_read_from_files_alone(tmp_path: Path, picture: Picture, build: Build) -> None:
    table = pa.table({"image": [picture(0)], "caption": ["a cat"]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.parquet").symlink_to("a.parquet")  # a link to a file is a file
    reader = {"kind": "parquet", "path": str(tmp_path), "caption": "caption"}
    _, outcome = build(corpus(reader), tmp_path / "o")
    assert outcome.counts["rows_train"] == 2
