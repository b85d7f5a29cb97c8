"""Archives: good ones are unpacked, hostile ones leave nothing behind."""

import io
import stat
import tarfile
import zipfile

import pytest

from crkd_cli.cli.console import progress
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
