"""NRRD and MetaImage files: read as ITK reads them, and no other file is."""

import gzip
import os
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.raw.formats import (
    data_file,
    label_name,
    probe,
    read_image,
    read_label,
    write_label,
)
from crkd_cli.errors import CrkdError

VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4)  # z, y, x
COMPRESSED = gzip.compress(VOXELS.tobytes(), mtime=0)
TURN = "(0.6,0,0.8) (0,2,0) (-0.8,0,0.6)"
NRRD = {
    "space": "dimension: 3\nspace: left-posterior-superior\nsizes: 4 3 2\nspace directions: "
    f"{TURN}\nspace origin: (7,8,9)",
    "RAS": "dimension: 3\nspace: right-anterior-superior\nsizes: 4 3 2\n"
    f"kinds: domain domain domain\nspace directions: {TURN}\nspace origin: (7,8,9)",
    "LAS": f"dimension: 3\nspace: LAS\nsizes: 4 3 2\nspace directions: {TURN}"
    "\nspace origin: (7, -8, 9)",
    "no origin": f"dimension: 3\nspace: LPS\nsizes: 4 3 2\nspace directions: {TURN}",
    "other space": f"dimension: 3\nspace dimension: 3\nsizes: 4 3 2\nspace directions: {TURN}"
    "\nspace origin: (7,8,9)",
    "spacings": "dimension: 3\nsizes: 4 3 2\nspacings: 0.5 2 3",
    "axis mins": "dimension: 3\nsizes: 4 3 2\nspacings: 0.5 2 3\naxis mins: 1 2 3\n"
    "centerings: node cell cell",
    "axis mins alone": "dimension: 3\nsizes: 4 3 2\nspacings: 0.5 2 3\naxis mins: 1 2 3",
    "2D": "dimension: 2\nsizes: 4 6\nspacings: 0.5 2",
    "channels first": "dimension: 4\nsizes: 2 4 3 1\nkinds: vector domain domain domain\n"
    f"space: LPS\nspace directions: none {TURN}\nspace origin: (7,8,9)",
    "key/values": "dimension: 3\n# comment: no\nsizes: 4 3 2\nspacings: 1 1 2\nname:=sizes: 9",
}
MHA = {
    "plain": "DimSize = 4 3 2\nElementSpacing = 0.5 2 3\nOffset = 7 8 9\n"
    "TransformMatrix = 0.6 0 0.8 0 1 0 -0.8 0 0.6",
    "other names": "DimSize = 4 3 2\nElementSize = 0.5 2 3\nPosition = 7 8 9\n"
    "Orientation = 0 1 0 1 0 0 0 0 1",
    "channels": "DimSize = 4 3 1\nElementNumberOfChannels = 2\nElementSpacing = 0.5 2 3",
    "nothing": "DimSize = 4 3 2",
}


def nrrd(fields, encoding="raw", more="", data=None):
    data = VOXELS.tobytes() if data is None else data
    head = f"NRRD0005\ntype: short\n{fields}\nendian: little\nencoding: {encoding}\n{more}\n"
    return head.encode() + data


def mha(fields, compressed=False, name="LOCAL", more="", data=None, dims=3):
    data = VOXELS.tobytes() if data is None else data
    return (
        f"ObjectType = Image\nNDims = {dims}\nBinaryData = True\nCompressedData = {compressed}\n"
        f"{fields}\nElementType = MET_SHORT\n{more}ElementDataFile = {name}\n"
    ).encode() + data


def geometry(path):
    image = sitk.ReadImage(str(path))
    return np.array([*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()])


def assert_same_as_itk(path):
    """Compare the voxels with ITK's, and the geometry by ITK's reading of a mask."""
    volume = read_image(path)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if expected.ndim > volume.array.ndim - 1:
        expected = np.moveaxis(expected, -1, 0)
    np.testing.assert_array_equal(volume.array.reshape(expected.shape), expected)
    layout = probe(path)
    assert (layout.channels, *layout.size) == volume.array.shape
    mask = path.with_name(f"mask-{label_name(path)}")
    write_label(mask, volume.array[0], volume)
    np.testing.assert_allclose(geometry(mask), geometry(path), atol=1e-9)
    assert read_label(mask).geometry.distance(volume.geometry, volume.size[::-1]) < 1e-9


@pytest.mark.parametrize("name", NRRD)
def test_nrrd_headers(tmp_path, name):
    (tmp_path / "x.nrrd").write_bytes(nrrd(NRRD[name]))
    assert_same_as_itk(tmp_path / "x.nrrd")


@pytest.mark.parametrize("name", MHA)
def test_metaimage_headers(tmp_path, name):
    (tmp_path / "x.mha").write_bytes(mha(MHA[name]))
    assert_same_as_itk(tmp_path / "x.mha")


def test_encodings(tmp_path):
    text = " ".join(map(str, VOXELS.ravel())).encode()
    big = VOXELS.astype(">i2").tobytes()
    space = NRRD["space"]
    contents = {
        "gzip.nrrd": nrrd(space, "gzip", data=COMPRESSED),
        "ascii.nrrd": nrrd(space, "ascii", data=text),
        "big.nrrd": nrrd(space, data=big).replace(b"little", b"big"),
        "crlf.nrrd": nrrd(space, data=b"").replace(b"\n", b"\r\n") + VOXELS.tobytes(),
        "zlib.mha": mha(MHA["plain"], True, data=zlib.compress(VOXELS.tobytes())),
        "big.mha": mha(MHA["plain"], more="BinaryDataByteOrderMSB = True\n", data=big),
        "text.mha": mha(MHA["plain"], data=text).replace(
            b"BinaryData = True", b"BinaryData = False"
        ),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_image(tmp_path / name).array[0], VOXELS, err_msg=name)


def test_voxels_in_another_file(tmp_path):
    (tmp_path / "x.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "y.raw").write_bytes(b"skip" + VOXELS.tobytes())
    (tmp_path / "x.nhdr").write_bytes(nrrd(NRRD["RAS"], more="data file: x.raw\n", data=b""))
    (tmp_path / "y.nhdr").write_bytes(
        nrrd(NRRD["RAS"], more="datafile: y.raw\nbyte skip: -1\n", data=b"")
    )
    (tmp_path / "x.mhd").write_bytes(mha(MHA["plain"], name="x.raw", data=b""))
    (tmp_path / "y.mhd").write_bytes(
        mha(MHA["plain"], name="y.raw", more="HeaderSize = 4\n", data=b"")
    )
    for header in ("x.nhdr", "y.nhdr", "x.mhd", "y.mhd"):
        assert_same_as_itk(tmp_path / header)
        assert data_file(tmp_path / header) == tmp_path / f"{header[0]}.raw"
    (tmp_path / "x.mha").write_bytes(mha(MHA["plain"]))
    assert data_file(tmp_path / "x.mha") is None


SECRET = "../secret.raw"


@pytest.mark.parametrize(
    "name",
    [SECRET, "/etc/hostname", "..", ".", "folder/x.raw", "C:\\x.raw", "a\\x.raw", "http://a/x.raw"],
)
def test_headers_do_not_name_files_elsewhere(tmp_path, name):
    folder = tmp_path / "scans"
    (folder / "folder").mkdir(parents=True)
    for file in (tmp_path / "secret.raw", folder / "folder/x.raw"):
        file.write_bytes(VOXELS.tobytes())
    (folder / "x.nhdr").write_bytes(nrrd(NRRD["space"], more=f"data file: {name}\n", data=b""))
    (folder / "x.nrrd").write_bytes(nrrd(NRRD["space"], more=f"data file: {name}\n", data=b""))
    (folder / "x.mhd").write_bytes(mha(MHA["plain"], name=name, data=b""))
    for header in ("x.nhdr", "x.nrrd", "x.mhd"):
        with pytest.raises(CrkdError, match=rf"{header.replace('.', '[.]')} names|is a folder"):
            read_image(folder / header)


def test_neighbors_that_are_no_plain_files(tmp_path):
    outside = tmp_path / "outside.raw"
    outside.write_bytes(VOXELS.tobytes())
    folder = tmp_path / "scans"
    folder.mkdir()
    os.mkfifo(folder / "pipe.raw")
    (folder / "link.raw").symlink_to(outside)
    problems = {
        "missing.raw": "needs missing.raw beside it; copy both",
        "pipe.raw": "pipe.raw is a pipe or device, not a regular file",
        "link.raw": "link.raw is a link to another folder",
        "x.mhd": "x.mhd names itself as the file of its voxels",
        "LIST": "has its voxels in several files; save it as one file",
    }
    for name, message in problems.items():
        (folder / "x.mhd").write_bytes(mha(MHA["plain"], name=name, data=b""))
        with pytest.raises(CrkdError, match=message):
            read_image(folder / "x.mhd")


ZLIB = zlib.compress(VOXELS.tobytes())
DAMAGED = [
    ("x.mha", mha("DimSize = 4 3 2", dims=-3)),  # ITK crashes
    ("x.mha", mha("DimSize = 4 3 2", dims=2)),
    ("x.mha", mha("DimSize = 4 3 -2")),
    ("x.mha", mha("DimSize = 4 3 999999999")),
    ("x.mha", mha("DimSize = 4 3 1")),
    ("x.mha", mha("DimSize = 4 3 2\nElementNumberOfChannels = 0")),
    ("x.mha", mha("DimSize = 4 3 2").replace(b"MET_SHORT", b"MET_STRING")),
    ("x.mha", mha("DimSize = 4 3 2", True)),
    ("x.mha", mha("DimSize = 4 3 2", True, data=ZLIB[:-1])),
    ("x.mha", mha("DimSize = 4 3 1", True, data=ZLIB)),
    ("x.mha", mha("DimSize = 4 3 3", True, data=ZLIB)),
    ("x.mha", mha("DimSize = 4 3 2", True, data=ZLIB[:-2] + b"ab")),
    ("x.mha", b"ObjectType = Image\n"),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 0")),
    ("x.nrrd", nrrd("dimension: -3\nsizes: 4 3 2")),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 999999999")),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 1")),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 2", data=VOXELS.tobytes()[:-1])),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 2", "zip")),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 2").replace(b"short", b"block")),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 2").replace(b"endian: little\n", b"")),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 2", "gzip", data=COMPRESSED[:-1])),
    ("x.nrrd", nrrd("dimension: 3\nsizes: 4 3 2", "gzip", data=COMPRESSED + b"garbage")),
    ("x.nrrd", b"NRRD0005\n" + b"a" * 9999),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CrkdError, match=r"x\.\w+ cannot be read, it may be .*; copy it again"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["x.nrrd", "x.mha"])
def test_every_byte_that_a_checksum_protects(tmp_path, rng, name):
    values = rng.integers(-999, 999, (2, 3, 4)).astype("<i2").tobytes()
    whole = mha("DimSize = 4 3 2", True, data=zlib.compress(values))
    start = whole.index(b"LOCAL\n") + 6
    if name == "x.nrrd":
        content = gzip.compress(values, mtime=0)
        whole = nrrd(NRRD["space"], "gzip", data=content)
        start = len(whole) - len(content) + 10  # the header of gzip is not protected
    for position in range(start, len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 4
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(CrkdError, match="cannot be read"):
            read_image(tmp_path / name)


def test_a_film(tmp_path):
    (tmp_path / "x.nrrd").write_bytes(nrrd("dimension: 4\nsizes: 4 3 1 2"))
    (tmp_path / "x.mha").write_bytes(mha("DimSize = 4 3 1 2", dims=4))
    for name in ("x.nrrd", "x.mha"):
        with pytest.raises(
            CrkdError, match=r"has 4 axes \(4 × 3 × 1 × 2\); .* \(extract one frame"
        ):
            read_image(tmp_path / name)
