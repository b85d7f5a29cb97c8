"""NIfTI headers of all kinds: masks lie on their images for nibabel and for ITK."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.raw.formats import Volume, label_name, probe, read_image, read_label, write_label
from crkd_cli.errors import CrkdError

SHAPE = (5, 4, 3)  # x, y, z
# Voxels of 0.7 × 0.9 × 5 mm, turned by 30° about x, in RAS.
TURN = np.array(
    [
        [1, 0, 0],
        [0, np.cos(np.pi / 6), -np.sin(np.pi / 6)],
        [0, np.sin(np.pi / 6), np.cos(np.pi / 6)],
    ]
)
AFFINE = nib.affines.from_matvec(TURN @ np.diag([0.7, 0.9, 5]), [-12.5, 30.25, 7.75])
SHEARED = AFFINE @ np.array([[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def voxels(dtype="i2", shape=SHAPE):
    """Return an array in which every voxel is different."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def image(array=None, affine=AFFINE, codes=(1, 1), kind=nib.Nifti1Image, **fields):
    """Return a nibabel image with qform and sform `codes`; `fields` are set in the header."""
    array = voxels() if array is None else array
    made = kind(array, affine, dtype=array.dtype)
    made.set_qform(affine if codes[0] else None, codes[0])
    made.set_sform(affine if codes[1] else None, codes[1])
    for name, value in fields.items():
        made.header[name] = value
    return made


def disagreeing():
    made = image()
    made.set_sform(np.diag([-2.0, 2, 2, 1]), 2)
    return made


def big_endian():
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    header.set_qform(AFFINE, 1)
    return nib.Nifti1Image(voxels(">i2"), AFFINE, header)


def rounded():
    """Return an image whose rotation was rounded, so that ITK may not take it for one."""
    return image(affine=np.round(AFFINE, 2), codes=(0, 1))


def scaled():
    made = image(voxels("f4"))  # nibabel stores them as they are if the scale is given
    made.header.set_data_dtype("i2")
    made.header.set_slope_inter(0.5, -3)
    return made


HEADERS = {
    "both codes 0": lambda: image(codes=(0, 0), pixdim=[1, 0.7, 0.9, 5, 1, 1, 1, 1]),
    "sform only": lambda: image(codes=(0, 2)),
    "qform only": lambda: image(codes=(3, 0)),
    "disagreeing": disagreeing,
    "left-handed": lambda: image(affine=AFFINE @ np.diag([-1, 1, 1, 1])),
    "sheared": lambda: image(affine=SHEARED, codes=(0, 1)),
    "sheared, with a qform": lambda: image(affine=SHEARED),
    "rounded rotation": rounded,
    "big-endian": big_endian,
    "int64": lambda: image(voxels("i8")),
    "scl_slope": scaled,
    "singleton fourth axis": lambda: image(voxels(shape=(*SHAPE, 1))),
    "two singleton axes": lambda: image(voxels(shape=(*SHAPE, 1, 1))),
    "NIfTI-2": lambda: image(kind=nib.Nifti2Image),
    "micrometers": lambda: image(xyzt_units=3),
    "2D": lambda: image(voxels(shape=SHAPE[:2])),
    "one slice": lambda: image(voxels(shape=(5, 4, 1))),
    "pair": lambda: image(kind=nib.Nifti1Pair),
    "qfac 0": lambda: image(codes=(0, 1), pixdim=[0, 0.7, 0.9, 5, 1, 1, 1, 1]),
    "with leftovers": lambda: image(
        cal_max=99, cal_min=1, descrip=b"Doe^Jane", aux_file=b"jane", intent_name=b"jane"
    ),
}
GEOMETRY_FIELDS = ("qform_code", "sform_code", "pixdim", "xyzt_units", "dim", "dim_info")


def itk_geometry(path):
    try:
        read = sitk.ReadImage(str(path))
    except RuntimeError:  # not orthonormal
        return None
    return read.GetSize(), read.GetSpacing(), read.GetOrigin(), read.GetDirection()


@pytest.mark.parametrize("ending", [".nii", pytest.param(".nii.gz", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HEADERS)
def test_masks_lie_on_their_images(tmp_path, name, ending):
    path = tmp_path / f"x{'.hdr' if name == 'pair' else ending}"
    source = HEADERS[name]()
    nib.save(source, path)
    source = nib.load(path)
    values = np.squeeze(source.get_fdata())
    volume = read_image(path)
    np.testing.assert_array_equal(np.squeeze(volume.array[0].T), values)

    mask = tmp_path / f"mask-{label_name(path)}"
    write_label(mask, (volume.array[0] > 9).astype(np.int64), volume)
    written = nib.load(mask)
    np.testing.assert_array_equal(np.squeeze(np.asarray(written.dataobj)), values > 9)
    assert written.get_data_dtype() == np.uint8
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    quaternion = [f"quatern_{axis}" for axis in "bcd"]
    offset, rows = [f"qoffset_{axis}" for axis in "xyz"], [f"srow_{axis}" for axis in "xyz"]
    for field in (*GEOMETRY_FIELDS, *quaternion, *offset, *rows):
        np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)
    assert (written.header["scl_slope"], written.header["cal_max"]) != (0, 99)
    assert b"jane" not in mask.read_bytes().lower()
    assert itk_geometry(mask) == itk_geometry(path)
    if itk_geometry(path) is not None:
        of_image, of_mask = (sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in (path, mask))
        np.testing.assert_array_equal(of_mask, of_image > 9)
    label = read_label(mask)
    np.testing.assert_array_equal(label.array, volume.array[0] > 9)
    assert label.geometry.distance(volume.geometry, volume.size[::-1]) == 0


@pytest.mark.parametrize(
    ("name", "spacing"),
    [("both codes 0", (5, 0.9, 0.7)), ("micrometers", (0.005, 0.0009, 0.0007)), ("2D", (0.9, 0.7))],
)
def test_spacing(tmp_path, name, spacing):
    nib.save(HEADERS[name](), tmp_path / "x.nii")
    assert read_image(tmp_path / "x.nii").spacing_mm == pytest.approx(spacing, rel=1e-6)


def test_integers_stay_integers_unless_they_are_scaled(tmp_path):
    huge = np.full((2, 2, 2), 2**62 + 1)
    nib.save(image(huge), tmp_path / "x.nii")
    np.testing.assert_array_equal(read_label(tmp_path / "x.nii").array, huge)
    nib.save(scaled(), tmp_path / "scaled.nii")
    volume = read_image(tmp_path / "scaled.nii")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0].T, 0.5 * voxels() - 3)


def test_the_named_file_is_read(tmp_path):
    """ITK reads x.nii in place of x.nii.gz."""
    for name, value in (("x.nii", 1), ("x.nii.gz", 2), ("x.hdr", 3)):
        kind = nib.Nifti1Pair if name == "x.hdr" else nib.Nifti1Image
        nib.save(image(np.full(SHAPE, value, np.uint8), kind=kind), tmp_path / name)
    for name, value in (("x.nii", 1), ("x.nii.gz", 2), ("x.hdr", 3)):
        assert (read_label(tmp_path / name).array == value).all()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_compressed_or_not_is_seen_from_the_content(tmp_path, ending):
    content = image().to_bytes()
    content = gzip.compress(content) if ending == ".nii" else content
    (tmp_path / f"x{ending}").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / f"x{ending}").array[0].T, voxels())


def test_colors_and_vectors_are_channels(tmp_path, rng):
    colors = rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    structured = colors.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(image(structured), tmp_path / "rgb.nii")
    vectors = image(colors[:, :, :, None])
    vectors.header.set_intent("vector")
    nib.save(vectors, tmp_path / "vector.nii")
    for name in ("rgb.nii", "vector.nii"):
        volume = read_image(tmp_path / name)
        np.testing.assert_array_equal(volume.array.T, colors)
        layout = probe(tmp_path / name)
        assert (layout.channels, *layout.size) == volume.array.shape
        assert layout.is_color == (name == "rgb.nii")
        np.testing.assert_array_equal(
            np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))), -1, 0),
            volume.array,
        )
        write_label(tmp_path / "mask.nii", volume.array[0] // 99, volume)
        assert nib.load(tmp_path / "mask.nii").shape == SHAPE
        assert itk_geometry(tmp_path / "mask.nii") == itk_geometry(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], "u1"),
        ([0, 256], "u2"),
        ([0, 2**32 - 1], "u4"),
        ([0, 2**63], "u8"),
        ([-1, 255], "i2"),
        ([-(2**40), 1], "i8"),
    ],
)
def test_masks_have_the_smallest_type_that_holds_their_values(tmp_path, values, dtype):
    nib.save(image(np.zeros((2, 1, 1), np.uint8)), tmp_path / "x.nii")
    volume = read_image(tmp_path / "x.nii")
    label = np.array(values, np.uint64 if values[1] == 2**63 else np.int64).reshape(1, 1, 2)
    for ending in (".nii", ".nrrd", ".h5"):
        write_label(tmp_path / f"mask{ending}", label, volume)
        stored = read_label(tmp_path / f"mask{ending}").array
        assert (stored.dtype, stored.ravel().tolist()) == (np.dtype(dtype), values)


def damaged(**fields):
    content = bytearray(image().to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (damaged(bitpix=0), "bitpix is 0, but datatype is int16"),
        (damaged(bitpix=8), "bitpix is 8, but datatype is int16"),
        (damaged(datatype=2, bitpix=8), "more than the declared 60 bytes"),
        (damaged(datatype=16, bitpix=32), "it declares 592 bytes of data, the file has 472 bytes"),
        (damaged(dim=[3, 5, 4, 2, 1, 1, 1, 1]), "more than the declared 80 bytes"),
        (damaged(dim=[3, 5, 4, 30, 1, 1, 1, 1]), "it declares 1.6 kB of data"),
        (damaged(dim=[3, 5, 4, -3, 1, 1, 1, 1]), r"dim is \[3, 5, 4, -3"),
        (damaged(dim=[0] * 8), r"dim is \[0, 0"),
        (damaged(dim=[7, *[32767] * 7]), "has 7 axes"),
        (damaged(datatype=32, bitpix=64), "voxels of type complex64; save them as integers"),
        (damaged(datatype=1536, bitpix=128), "voxels of type float128"),
        (damaged(datatype=77), "unknown datatype 77"),
        (damaged(vox_offset=np.nan), "cannot be read"),
        (damaged(vox_offset=1e30), "cannot be read"),
        (damaged(vox_offset=-9), "more than the declared"),
        (image().to_bytes()[:-1], "it declares 472 bytes of data, the file has 471 bytes"),
        (image().to_bytes()[:200], "cannot be read"),
        (
            image(voxels(shape=(*SHAPE, 2))).to_bytes(),
            "has a fourth axis of 2: if these are channels, list all in dataset.yaml",
        ),
        (damaged(magic=b"\0\0\0\0"), "is an Analyze 7.5 header, which does not say which side"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / "x.nii").write_bytes(content)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(CrkdError, match=rf"x\.nii .*{message}"):
        read_image(tmp_path / "x.nii")
    with pytest.raises(CrkdError, match=r"x\.nii\.gz "):
        read_image(tmp_path / "x.nii.gz")


def test_every_byte_that_gzip_protects(tmp_path, rng):
    content = gzip.compress(image(rng.normal(size=SHAPE)).to_bytes(), mtime=0)
    path = tmp_path / "x.nii.gz"
    for position in range(10, len(content), 23):  # the header of gzip is not protected
        broken = bytearray(content)
        broken[position] ^= 4
        path.write_bytes(broken)
        with pytest.raises(CrkdError, match=r"x\.nii\.gz"):
            read_image(path)
    with gzip.GzipFile(path, "wb", mtime=0) as file:  # two parts, as a concatenation has
        file.write(image().to_bytes()[:100])
    path.write_bytes(path.read_bytes() + gzip.compress(image().to_bytes()[100:]))
    np.testing.assert_array_equal(read_image(path).array[0].T, voxels())
    for ending in (b"garbage", content[:40]):
        path.write_bytes(content + ending)
        with pytest.raises(CrkdError, match=r"x\.nii\.gz cannot be read"):
            read_image(path)


def test_a_file_that_declares_more_than_any_scan(tmp_path):
    """Eight GB of zeros in eight MB, as a header of 32767 × 32767 × 8 voxels promises."""
    header = nib.Nifti1Header()
    header.set_data_shape((32767, 32767, 8))
    header.set_data_dtype(np.uint8)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1 << 20)))
    with pytest.raises(
        CrkdError, match=r"x\.nii\.gz is not a plausible image: it declares 8\.6 GB of data, the "
    ):
        read_image(tmp_path / "x.nii.gz")


def test_pairs(tmp_path):
    nib.save(image(kind=nib.Nifti1Pair), tmp_path / "x.hdr")
    with pytest.raises(CrkdError, match=r"x\.img contains the voxels of another file; give its"):
        read_image(tmp_path / "x.img")
    (tmp_path / "x.img").unlink()
    with pytest.raises(CrkdError, match=r"x\.hdr needs x\.img beside it; copy both"):
        read_image(tmp_path / "x.hdr")
    (tmp_path / "x.hdr").write_bytes(image().to_bytes())
    with pytest.raises(CrkdError, match=r"ends in \.hdr; end its name in \.nii"):
        read_image(tmp_path / "x.hdr")
    envi = b"ENVI\nsamples = 3\n"
    (tmp_path / "x.hdr").write_bytes(envi)
    with pytest.raises(CrkdError, match=r"x\.hdr cannot be read, it may be .*no NIfTI header"):
        read_image(tmp_path / "x.hdr")


def test_a_volume_of_another_format_as_model(tmp_path):
    array = voxels("u1").T
    source = sitk.GetImageFromArray(array)
    source.SetSpacing((0.7, 0.9, 5))
    source.SetOrigin((3, -4, 5))
    source.SetDirection(TURN.ravel().tolist())
    sitk.WriteImage(source, str(tmp_path / "x.nrrd"))
    volume = read_image(tmp_path / "x.nrrd")
    write_label(tmp_path / "x.nii", array, volume)
    for one, two in zip(
        itk_geometry(tmp_path / "x.nii"), itk_geometry(tmp_path / "x.nrrd"), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)
    write_label(tmp_path / "y.nii", array, Volume(array[None], None, array.shape))
    assert nib.load(tmp_path / "y.nii").header["sform_code"] == 0


def test_hand_made_header_of_a_pair_in_big_endian(tmp_path):
    """After the definition of the format; int16 voxels 0 to 23."""
    head = struct.pack(">i", 348).ljust(40, b"\0") + struct.pack(">8h", 3, 4, 3, 2, 1, 1, 1, 1)
    head = head.ljust(70, b"\0") + struct.pack(">2h", 4, 16)
    head = head.ljust(76, b"\0") + struct.pack(">9f", 1, 1, 1, 1, 0, 0, 0, 0, 0)
    head = head.ljust(344, b"\0") + b"ni1\0"
    Path(tmp_path / "x.hdr").write_bytes(head)
    Path(tmp_path / "x.img").write_bytes(np.arange(24, dtype=">i2").tobytes())
    assert read_image(tmp_path / "x.hdr").array.ravel().tolist() == list(range(24))
