"""Tars read in place, compared with the standard library's reader."""

import io
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.corpus.readers.tar import members

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00/"), min_size=1, max_size=150)


def pack(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_gives_names_and_bytes(form: int) -> None:
    files = {"a/b.jpg": b"x" * 700, "d" * 90 + "/" + "e" * 90: b"", "c.txt": b"y" * 512}
    found = {m.name: m.data for m in members(io.BytesIO(pack(files, form)), "t")}
    assert found == files


@given(st.dictionaries(NAMES, st.binary(max_size=1100), max_size=6))
def test_any_names_and_contents_are_read_as_the_standard_library_reads_them(
    files: dict[str, bytes],
) -> None:
    data = pack(files)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in members(io.BytesIO(data), "t")] == expected


@given(st.data())
def test_a_tar_cut_anywhere_is_refused_in_a_sentence(data: st.DataObject) -> None:
    whole = pack({"a.jpg": b"x" * 1500, "b.jpg": b"y" * 10})
    end = whole.rindex(b"y") + 1
    cut = data.draw(st.integers(0, end))
    with pytest.raises(StageError, match=r"^some\.tar (ends before|is not a tar)"):
        list(members(io.BytesIO(whole[:cut]), "some.tar"))


def test_other_bytes_than_a_tar_are_refused() -> None:
    with pytest.raises(StageError, match="is not a tar"):
        list(members(io.BytesIO(b"not a tar at all " * 100), "some.tar"))


def with_pax_size(size: bytes) -> bytes:
    """A tar whose only member has a pax header with this size."""
    record = b" size=" + size + b"\n"
    length = len(record) + 1
    while len(str(length)) + len(record) != length:
        length = len(str(length)) + len(record)
    text = str(length).encode() + record
    header = tarfile.TarInfo("h")
    header.type, header.size = b"x", len(text)
    info = tarfile.TarInfo("a.jpg")
    info.size = 1
    return b"".join(
        (
            header.tobuf(tarfile.USTAR_FORMAT) + text.ljust(-(-len(text) // 512) * 512, b"\0"),
            info.tobuf(tarfile.USTAR_FORMAT) + b"x".ljust(512, b"\0") + bytes(1024),
        )
    )


@given(st.integers(10**6, 10**40).map(str) | st.text("\u00b2\u0663x- +_", min_size=1))
@example("9" * 5000)
def test_a_size_that_is_no_size_is_damage(size: str) -> None:
    """Python takes other scripts' digits for digits, and fails at numbers of 4,300 of them."""
    assert [m.data for m in members(io.BytesIO(with_pax_size(b"1")), "t")] == [b"x"]
    with pytest.raises(StageError, match=r"^some\.tar (ends before|is not a tar)"):
        list(members(io.BytesIO(with_pax_size(size.encode())), "some.tar"))


@pytest.mark.parametrize("size", [1 << 62, 1 << 80])
def test_a_member_larger_than_any_file_is_damage(size: int) -> None:
    header = bytearray(tarfile.TarInfo("n01.tar").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    skipped: list[int] = []
    with pytest.raises(StageError, match="is not a tar, or is damaged"):
        list(members(io.BytesIO(bytes(header)), "t", wanted=lambda _: False, skip=skipped.append))
    assert not skipped


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.jpg", "a/../../up.jpg"])
def test_names_that_leave_the_folder_are_unsafe(name: str) -> None:
    (found,) = members(io.BytesIO(pack({name: b"x"}, tarfile.GNU_FORMAT)), "t")
    assert found.fault == "unsafe_path"


def test_links_and_folders_are_distinguished_from_files() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind in (("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("d", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("dev"))
    stream.seek(0)
    assert [m.kind for m in members(stream, "t")] == ["link", "link", "folder", "file"]


def test_members_that_are_not_wanted_are_skipped() -> None:
    data = pack({"a.bin": b"x" * 3000, "b.jpg": b"y"})
    found = list(members(io.BytesIO(data), "t", wanted=lambda name: name.endswith("jpg")))
    assert [(m.name, m.size, m.data) for m in found] == [("a.bin", 3000, b""), ("b.jpg", 1, b"y")]
