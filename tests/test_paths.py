"""Temporary files and folders: names as long as the file system allows."""

import pytest

from crkd_cli.paths import atomic_write, replace_folder, temporary_folder

LONG_NAMES = [
    "p" * 248 + ".nii.gz",  # 255 bytes
    "é" * 124 + ".nii.gz",  # as many in two-byte characters
    "脳" * 82 + "𝕏" + ".h5",  # three and four bytes
    "[x]*?-old",
    "\udce9" * 255,  # not UTF-8
]


@pytest.mark.parametrize("name", LONG_NAMES, ids=range(len(LONG_NAMES)))
def test_a_file_may_have_any_name(tmp_path, name):
    path = tmp_path / name
    with atomic_write(path) as temporary:
        assert temporary.suffixes[-1:] == path.suffixes[-1:]
        temporary.write_text("content")
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", LONG_NAMES, ids=range(len(LONG_NAMES)))
def test_a_folder_may_have_any_name_and_is_replaced_whole(tmp_path, name):
    target = tmp_path / name
    for content in ("old", "new"):
        with temporary_folder(target) as folder:
            (folder / "file").write_text(content)
            replace_folder(folder, target)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (target / "file").read_text() == content
