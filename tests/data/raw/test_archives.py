"""Archives: good ones are unpacked, hostile ones leave nothing behind."""

import io
import stat
import tarfile
import zipfile

import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.data.raw.archives import extract
from crkd_cli.errors import CrkdError


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def make_tar(path, members):
    with tarfile.open(path, f"w:{path.suffix.removeprefix('.tar').lstrip('.')}") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def make(path, members):
    return make_zip(path, members) if path.suffix == ".zip" else make_tar(path, members)


FORMATS = pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])


@FORMATS
def test_files_are_unpacked(tmp_path, kind):
    members = {
        "set/images/1.png": b"one",
        "set/notes.txt": b"",
        "__MACOSX/set/._1.png": b"x",
        "set/.DS_Store": b"x",
    }
    extract([make(tmp_path / kind, members)], tmp_path / "raw/mine", progress)
    folder = tmp_path / "raw/mine"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {"set/images/1.png", "set/notes.txt"}
    assert (folder / "set/images/1.png").read_bytes() == b"one"


def assert_refused(tmp_path, archive, match):
    """Unpacking fails, and nothing is written: neither the target, nor beside it, nor outside."""
    with pytest.raises(CrkdError, match=match) as error:
        extract([archive], tmp_path / "data/raw/mine", progress)
    assert str(archive) in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"data", archive.name}
    assert list((tmp_path / "data/raw").iterdir()) == []


@FORMATS
@pytest.mark.parametrize(
    "name", ["../evil.txt", "set/../../evil.txt", "/evil.txt", "set\\..\\evil.txt", "C:/evil.txt"]
)
def test_members_outside_are_refused(tmp_path, kind, name):
    archive = make(tmp_path / kind, {"good.txt": b"good", name: b"evil"})
    assert_refused(tmp_path, archive, "contains a file outside its folder")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_in_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("set/link")
        info.type, info.linkname = kind, "/etc"
        file.addfile(info)
    assert_refused(tmp_path, tmp_path / "a.tar", "contains a link or device")


def test_links_in_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("set/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc")
    assert_refused(tmp_path, tmp_path / "a.zip", "contains a link")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar.gz"])
def test_bombs_are_refused(tmp_path, kind):
    zeros = b"\0" * (30 << 20)
    archive = make(tmp_path / kind, {f"{n}.bin": zeros for n in range(4)})
    assert_refused(tmp_path, archive, "refused as an archive bomb")


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_damaged_archives_leave_nothing(tmp_path, kind, rng):
    archive = make(
        tmp_path / kind, {"set/1.bin": rng.bytes(100_000), "set/2.bin": rng.bytes(100_000)}
    )
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert_refused(tmp_path, archive, r"is damaged|is truncated|is not a zip or tar archive")
    archive.write_bytes(whole[:50_000] + bytes(64) + whole[50_064:])
    if kind != "a.tar":  # a plain tar has no checksums
        assert_refused(tmp_path, archive, "is damaged|is not a zip or tar archive")


@pytest.mark.parametrize(
    ("name", "damaged"),
    [(b"1.txt", b"\0.txt"), ("é.txt".encode(), b"\xff\xff.txt"), (b"1.txt", b"2.txt")],
    ids=["no name", "not Unicode", "two names"],
)
def test_zip_archives_with_damaged_names_are_refused(tmp_path, name, damaged):
    """The name stands before the content and, replaced here, in the directory at the end."""
    archive = make(tmp_path / "a.zip", {name.decode(): b"x"})
    head, directory = archive.read_bytes().rsplit(name, 1)
    archive.write_bytes(head + damaged + directory)
    assert_refused(tmp_path, archive, "is damaged")


@pytest.mark.parametrize(
    ("start", "stop"),
    [(1024, None), (1023, None), (1024, 1600)],
    ids=["cut between files", "cut in a file", "damaged header"],
)
def test_tar_archives_that_lost_files_are_refused(tmp_path, start, stop):
    """512 bytes of header and 512 of content for each file, then the end: 1024 zeros."""
    archive = make(tmp_path / "a.tar", {f"{n}.txt": b"x" * 512 for n in range(3)})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:start] + (b"?" * (stop - start) + whole[stop:] if stop else b""))
    assert_refused(tmp_path, archive, r"is damaged|is truncated")


def test_a_file_that_is_not_an_archive(tmp_path):
    (tmp_path / "a.zip").write_text("<html>please log in</html>")
    assert_refused(tmp_path, tmp_path / "a.zip", "is not a zip or tar archive; download it again")


def test_two_members_with_the_same_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("same.txt"))
    assert_refused(tmp_path, tmp_path / "a.tar", "contains same.txt twice")


@FORMATS
@pytest.mark.parametrize(
    "name",
    ["p" * 256, "é" * 128, "d/" * 64 + "x.png", "d/" * 1500 + "x.png", "a" * 300 + "/x.png"],
    ids=range(5),
)
def test_names_that_no_file_system_allows(tmp_path, kind, name):
    archive = make(tmp_path / kind, {"1.txt": b"x", name: b"x"})
    assert_refused(tmp_path, archive, r"contains too long a name \(.{1,100}\); unpack it yourself")


@FORMATS
def test_a_file_where_a_folder_is_needed(tmp_path, kind):
    archive = make(tmp_path / kind, {"a": b"x", "a/b.png": b"x"})
    assert_refused(tmp_path, archive, r"contains a file and a folder of one name \(a/b\.png\)")
    archive = make(tmp_path / kind, {"a/b.png": b"x", "a": b"x"})
    assert_refused(tmp_path, archive, "contains a twice")


@pytest.mark.parametrize(
    ("offset", "replacement", "problem"),
    [
        (8, b"\1\0", "password required"),  # flags
        (10, b"\x63\0", "damaged"),  # compression method
        (6, b"\xff\0", "damaged"),  # version needed
        (16, b"\0\0\0\0", "damaged"),  # CRC
        (24, b"\x05\0\0\0", "damaged"),  # size, too small
        (24, b"\0\x10\0\0", "truncated"),  # size, too large
        (20, b"\xff" * 8, "archive bomb"),  # sizes that zip64 should state
        (42, b"\xf0\xff\xff\xff", "damaged"),  # offset of the file
    ],
    ids=["encrypted", "method", "version", "crc", "small", "large", "zip64", "offset"],
)
def test_zip_directories_that_lie(tmp_path, offset, replacement, problem):
    archive = make_zip(tmp_path / "a.zip", {"1.png": b"x" * 100}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    entry = content.find(b"PK\1\2")
    if offset == 8:  # zipfile reads the flags in front of the file too
        content[6:8] = replacement
    content[entry + offset : entry + offset + len(replacement)] = replacement
    archive.write_bytes(content)
    assert_refused(tmp_path, archive, problem)


def pax(text):
    """A tar archive of one file, after a header that states more about it."""
    extra, file = tarfile.TarInfo("pax"), tarfile.TarInfo("a.png")
    extra.size, extra.type = len(text), b"x"
    return extra.tobuf() + text.ljust(512, b"\0") + file.tobuf() + bytes(1024)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"99999999999999999999 size=5\n", "damaged"),
        (b"30 size=99999999999999999999\n\n", "archive bomb"),
        (b"11 size=-5\n", "truncated|damaged"),
        (b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", "damaged"),
    ],
    ids=["record", "huge", "negative", "sparse"],
)
def test_tar_headers_that_lie(tmp_path, text, problem):
    (tmp_path / "a.tar").write_bytes(pax(text))
    assert_refused(tmp_path, tmp_path / "a.tar", problem)


def test_a_sparse_file_in_tar_is_as_large_as_it_becomes(tmp_path):
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[124:135] = b"S", b"00000001000"
    header[386:410] = b"00000000000\x0000000001000\0"
    header[483:495] = b"77777777777\0"  # 8 GB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + b"x" * 512 + bytes(1024))
    assert_refused(tmp_path, tmp_path / "a.tar", "archive bomb")
