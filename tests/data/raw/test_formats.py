"""Image formats. SimpleITK, Pillow and h5py write the inputs and read the outputs."""

import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from crkd_cli.data.raw.formats import (
    Volume,
    label_name,
    probe,
    read_image,
    read_label,
    stem,
    suffix,
    write_label,
)
from crkd_cli.data.raw.medical import SUFFIXES as MEDICAL
from crkd_cli.errors import CrkdError

# A quarter turn about z, then 30° about x: no axis is left where it was.
TURN = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], float) @ np.array(
    [
        [1, 0, 0],
        [0, np.cos(np.pi / 6), -np.sin(np.pi / 6)],
        [0, np.sin(np.pi / 6), np.cos(np.pi / 6)],
    ]
)
SPACING, ORIGIN = (0.7, 0.9, 5.0), (-12.5, 30.25, 7.75)


def medical(path, array, spacing=SPACING, origin=ORIGIN, direction=TURN):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.asarray(direction).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("kind", MEDICAL)
@pytest.mark.parametrize("z_last", [False, True])
def test_masks_of_medical_files_keep_the_geometry(tmp_path, rng, kind, z_last):
    array = rng.normal(size=(4, 7, 9)).astype(np.float32)
    path = medical(tmp_path / f"scan{kind}", array)
    volume = read_image(path, z_last=z_last)
    assert volume.size == ((9, 7, 4) if z_last else (4, 7, 9))
    assert volume.array.shape == (1, *volume.size)
    np.testing.assert_array_equal(volume.array[0], array.transpose(2, 1, 0) if z_last else array)
    assert volume.spacing_mm == pytest.approx(SPACING if z_last else SPACING[::-1], rel=1e-6)
    layout = probe(path)
    assert (layout.channels, layout.size) == (1, (4, 7, 9))
    assert str(layout.geometry) == str(volume.geometry)

    label = (volume.array[0] > 0).astype(np.uint8)
    mask = tmp_path / label_name(Path(f"mask{kind}"))
    write_label(mask, label, volume)
    written, source = sitk.ReadImage(str(mask)), sitk.ReadImage(str(path))
    assert written.GetSize() == (9, 7, 4)
    assert written.GetPixelID() == sitk.sitkUInt8
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(written, get)(), getattr(source, get)(), atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), (array > 0).astype(np.uint8))
    np.testing.assert_array_equal(read_label(mask, z_last=z_last).array, label)
    assert str(read_label(mask, z_last=z_last).geometry) == str(volume.geometry)


@pytest.mark.parametrize("kind", [".NII", ".NII.GZ", ".NRRD", ".MHA", ".Nii", ".TIF", ".H5"])
def test_upper_case_suffixes(tmp_path, rng, kind):
    array = rng.integers(0, 9, (4, 7, 9), dtype=np.uint8)
    path = tmp_path / f"Scan{kind}"
    write_label(path, array, Volume(array[None], None, array.shape))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(read_label(path).array, array)


@pytest.mark.parametrize("kind", [".png", ".tif", ".tiff"])
def test_pictures_of_odd_size(tmp_path, rng, kind):
    array = rng.integers(0, 256, (13, 21, 3), dtype=np.uint8)
    path = tmp_path / f"photo{kind}"
    Image.fromarray(array).save(path)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.array, array.transpose(2, 0, 1))
    assert (volume.size, volume.spacing_mm) == ((13, 21), None)
    label = rng.integers(0, 4, (13, 21), dtype=np.uint8)
    write_label(tmp_path / f"mask{kind}", label, volume)
    with Image.open(tmp_path / f"mask{kind}") as written:
        assert written.size == (21, 13)
        np.testing.assert_array_equal(np.asarray(written), label)


def test_names_of_masks(tmp_path):
    assert label_name(tmp_path / "a.b.JPG") == "a.b.png"
    assert label_name(tmp_path / "a.nii.gz") == "a.nii.gz"
    assert label_name(tmp_path / "a.hdr") == "a.nii"
    assert label_name(tmp_path / "a.mhd") == "a.mha"
    assert label_name(tmp_path / "a.gif") == "a.png"
    assert stem(tmp_path / "a.b.nii.gz") == "a.b"
    assert suffix(tmp_path / "A.NII.GZ") == ".nii.gz"
    assert suffix(tmp_path / "a.txt") == ""


@pytest.mark.parametrize("kind", [".tif", ".png"])
def test_sixteen_bit_pictures_keep_their_values(tmp_path, kind):
    array = np.array([[0, 1, 255], [256, 40_000, 65_535]], np.uint16)
    Image.fromarray(array).save(tmp_path / f"x{kind}")
    np.testing.assert_array_equal(read_image(tmp_path / f"x{kind}").array, array[None])


def test_a_tiff_with_several_pages_is_a_volume(tmp_path, rng):
    pages = rng.integers(0, 60_000, (4, 6, 5), dtype=np.uint16)
    images = [Image.fromarray(page) for page in pages]
    images[0].save(tmp_path / "stack.tif", save_all=True, append_images=images[1:])
    assert probe(tmp_path / "stack.tif")[:2] == (1, pages.shape)
    volume = read_image(tmp_path / "stack.tif")
    np.testing.assert_array_equal(volume.array[0], pages)
    label = (pages > 30_000).astype(np.uint8)
    write_label(tmp_path / "mask.tif", label, volume)
    np.testing.assert_array_equal(read_label(tmp_path / "mask.tif").array, label)


def test_picture_modes(tmp_path):
    gray = np.array([[0, 255], [7, 9]], np.uint8)
    Image.fromarray(gray).convert("LA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png").array, gray[None])
    Image.fromarray(gray > 8).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_label(tmp_path / "bits.png").array, [[0, 1], [0, 1]])
    palette = Image.fromarray(gray % 2).convert("P")
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putdata([0, 1, 1, 0])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label(tmp_path / "palette.png").array, [[0, 1], [1, 0]])
    assert read_image(tmp_path / "palette.png").array[:, 0, 1].tolist() == [200, 10, 10]


def test_h5_arrays_are_read_as_stored(tmp_path, rng):
    image, label = rng.normal(size=(5, 6, 7)), rng.integers(0, 3, (5, 6, 7), dtype=np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["image"], file["label"] = image, label
    volume = read_image(tmp_path / "x.h5", z_last=True)
    np.testing.assert_array_equal(volume.array[0], image)
    np.testing.assert_array_equal(read_label(tmp_path / "x.h5").array, label)
    write_label(tmp_path / "y.h5", label, volume)
    np.testing.assert_array_equal(read_label(tmp_path / "y.h5").array, label)
    write_label(tmp_path / "z.h5", label, volume)
    assert (tmp_path / "y.h5").read_bytes() == (tmp_path / "z.h5").read_bytes()


def test_labels_stored_as_floats_are_class_numbers(tmp_path):
    medical(tmp_path / "a.nii.gz", np.array([[[0, 1], [2, 3]]], np.float32))
    assert read_label(tmp_path / "a.nii.gz").array.dtype.kind == "i"
    medical(tmp_path / "b.nii.gz", np.array([[[0, 0.5], [2, 3]]], np.float32))
    with pytest.raises(CrkdError, match=r"b\.nii\.gz contains fractions, not class numbers"):
        read_label(tmp_path / "b.nii.gz")


def good_files(folder, rng):
    """Write one readable file per format, large enough that half of it is not readable."""
    array = rng.integers(0, 255, (8, 40, 30), dtype=np.uint8)
    for kind in MEDICAL:
        medical(folder / f"x{kind}", array)
    for kind in (".png", ".jpg", ".tif"):
        Image.fromarray(array[0]).save(folder / f"x{kind}")
    with h5py.File(folder / "x.h5", "w") as file:
        file["image"] = array
    return sorted(path for path in folder.iterdir() if suffix(path))


def test_errors_name_the_file_and_what_to_do(tmp_path, rng):
    for path in good_files(tmp_path, rng):
        whole = path.read_bytes()
        read_image(path)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CrkdError, match=f"{path.name} cannot be read, it may be truncated or "):
            read_image(path)
        path.write_bytes(b"")
        with pytest.raises(CrkdError, match=f"{path.name} is empty; copy or download it again"):
            read_image(path)
        path.write_bytes(b"\n<!DOCTYPE html><html><body>404</body></html>")
        with pytest.raises(CrkdError, match=f"{path.name} is a web page with a name that ends in"):
            read_image(path)
        path.unlink()
        with pytest.raises(CrkdError, match=f"{path.name} cannot be read: No such file"):
            read_image(path)


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))]
)
def test_any_damage_is_a_one_line_error(tmp_path, rng, seed):
    """Bytes are changed and ends cut off at random: no library's exception gets through."""
    pages = [Image.fromarray(page) for page in rng.integers(0, 255, (2, 40, 30), dtype=np.uint8)]
    pages[0].save(
        tmp_path / "pages.tif", compression="tiff_deflate", save_all=True, append_images=pages[1:]
    )
    damage = np.random.default_rng(seed)
    for path in [tmp_path / "pages.tif", *good_files(tmp_path, rng)]:
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(12):
            broken = whole[: damage.integers(1, len(whole))].copy()
            places = damage.integers(0, len(broken), damage.integers(0, 5))
            broken[places] = damage.integers(0, 256, len(places))
            path.write_bytes(broken.tobytes())
            for read in (read_image, read_label, probe):
                message = path.name
                try:
                    read(path)
                except CrkdError as error:
                    message = str(error)
                assert path.name in message
                assert "\n" not in message


def test_pictures_that_are_too_large(tmp_path):
    """The header declares 400 million pixels; no pixels follow."""
    header = struct.pack(">4s2I5B", b"IHDR", 20_000, 20_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I4s", 1000, b"IDAT")
    )
    for read in (read_image, probe):
        with pytest.raises(
            CrkdError, match=r"x\.png is too large for a picture .*; cut it into smaller ones"
        ):
            read(tmp_path / "x.png")


@pytest.mark.parametrize("content", ["text", 1j * np.ones((4, 4)), np.zeros((0, 4)), None], ids=str)
def test_h5_without_numbers(tmp_path, content):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if content is None:
            file.create_group("image")
        else:
            file["image"] = content
    for read in (read_image, probe):
        with pytest.raises(CrkdError, match=r"x\.h5 contains no numbers in 'image'; write an"):
            read(tmp_path / "x.h5")


@pytest.mark.parametrize("kind", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_in_nifti_is_kept(tmp_path, rng, kind, dtype):
    """ITK reads NaN as zero."""
    array = rng.normal(size=(3, 10, 11)).astype(dtype)
    array[2, 9, 9:] = np.nan, np.inf
    path = medical(tmp_path / f"x{kind}", array)
    np.testing.assert_array_equal(read_image(path).array[0], array)
    with pytest.raises(CrkdError, match=r"values that are not class numbers \(NaN or too large\)"):
        read_label(path)


def test_nifti_2_and_big_endian_files(tmp_path):
    """The headers are written by hand after the definition of the format; int16 voxels 0 to 23."""
    voxels = np.arange(24, dtype=">i2").tobytes()
    head = struct.pack(">i", 348).ljust(40, b"\0") + struct.pack(">8h", 3, 4, 3, 2, 1, 1, 1, 1)
    head = head.ljust(70, b"\0") + struct.pack(">2h", 4, 16)
    head = (
        head.ljust(76, b"\0")
        + struct.pack(">9f", 1, 1, 1, 1, 0, 0, 0, 0, 352).ljust(344 - 76, b"\0")
        + b"n+1\0"
    )
    (tmp_path / "big.nii").write_bytes(head.ljust(352, b"\0") + voxels)
    assert read_image(tmp_path / "big.nii").array.ravel().tolist() == list(range(24))
    (tmp_path / "big.nii").write_bytes(head.ljust(352, b"\0") + voxels[:-1])
    with pytest.raises(CrkdError, match=r"declares 400 bytes of data, the file has 399"):
        read_image(tmp_path / "big.nii")
    second = struct.pack("<i8s2h8q", 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, 4, 3, 2, 1, 1, 1, 1)
    second = second.ljust(168, b"\0") + struct.pack("<q", 544)
    (tmp_path / "two.nii").write_bytes(second.ljust(544, b"\0") + voxels[:-1])
    with pytest.raises(CrkdError, match=r"declares 592 bytes of data, the file has 591"):
        read_image(tmp_path / "two.nii")


def test_files_that_are_not_images_or_label_maps(tmp_path, rng):
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(CrkdError, match=r"x\.txt has no supported format; use one of \.png"):
        read_image(tmp_path / "x.txt")
    movie = sitk.JoinSeries(
        [sitk.GetImageFromArray(np.zeros((2, 3, 4), np.uint8)) for _ in range(3)]
    )
    sitk.WriteImage(movie, str(tmp_path / "film.nii.gz"))
    with pytest.raises(CrkdError, match=r"film\.nii\.gz has a fourth axis of 3: if these are"):
        read_image(tmp_path / "film.nii.gz")
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "color.png")
    with pytest.raises(CrkdError, match=r"color.png is a color picture, not a label map"):
        read_label(tmp_path / "color.png")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["volume"] = np.zeros((2, 2, 2))
    with pytest.raises(CrkdError, match=r"x\.h5 has no array 'image', only volume"):
        read_image(tmp_path / "x.h5")


def test_masks_that_cannot_be_written(tmp_path, rng):
    Image.fromarray(rng.integers(0, 255, (8, 9), dtype=np.uint8)).save(tmp_path / "x.png")
    volume = read_image(tmp_path / "x.png")
    with pytest.raises(CrkdError, match=r"the mask has shape \(9, 8\), its image \(8, 9\)"):
        write_label(tmp_path / "y.png", np.zeros((9, 8), np.uint8), volume)
    with pytest.raises(CrkdError, match="cannot write"):
        write_label(tmp_path / "x.png" / "y.png", np.zeros((8, 9), np.uint8), volume)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_incomplete_masks_are_an_error(tmp_path, rng, monkeypatch):
    """ITK overlooks a full disk. Here the file is truncated after it was written."""
    label = rng.integers(0, 9, (4, 7, 9), dtype=np.uint8)
    volume = Volume(label[None], None, label.shape)
    write = sitk.WriteImage

    def truncate(image, path, **options):
        write(image, path, **options)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[:-60])

    monkeypatch.setattr(sitk, "WriteImage", truncate)
    for kind in (".nrrd", ".mha"):
        with pytest.raises(CrkdError, match=r"cannot write .*the file was not written completely"):
            write_label(tmp_path / f"mask{kind}", label, volume)
    assert list(tmp_path.iterdir()) == []
