"""Reading DICOM. The answers are those of ITK's own series reader, of pydicom and of nibabel."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from crkd_cli.data.raw import deflated
from crkd_cli.data.raw.dicom import read_tags
from crkd_cli.data.raw.formats import probe, read_image, read_label
from crkd_cli.data.raw.geometry import LPS_TO_RAS
from crkd_cli.errors import CrkdError
from tests.dicom import save, set_pixels, slice_dataset, write_enhanced, write_object, write_series

SHAPE = (4, 16, 18)
OBLIQUE = ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))
SMALL = (
    "MR_small.dcm MR_small_RLE.dcm MR_small_bigendian.dcm MR_small_implicit.dcm "
    "MR_small_jp2klossless.dcm MR_small_jpeg_ls_lossless.dcm CT_small.dcm examples_overlay.dcm"
)


@pytest.fixture
def voxels(rng) -> np.ndarray:
    return rng.integers(0, 3000, SHAPE)


def local(name: str) -> Path:
    """Return a test file that is part of pydicom."""
    return Path(str(get_testdata_file(name, download=False)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compressed": True},
        {"axes": OBLIQUE, "spacing": (3.5, 0.5, 0.75)},
        {"tags": {"RescaleSlope": "0.5", "RescaleIntercept": "-10"}},
        {"tags": {"Modality": "MR", "RescaleSlope": "2", "RescaleIntercept": "5"}},
    ],
    ids=["plain", "RLE", "oblique", "fractions", "MR"],
)
def test_a_series_is_as_in_itk(tmp_path, rng, voxels, options):
    files = write_series(tmp_path, voxels, **options)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    expected = reader.Execute()
    volume = read_image(files[2], slices=[files[number] for number in (2, 0, 3, 1)])
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(volume.spacing_mm, expected.GetSpacing()[::-1])
    for index in [(0, 0, 0), (17, 2, 3), (5, 15, 1)]:
        position = np.array(expected.TransformIndexToPhysicalPoint(index)) * LPS_TO_RAS
        np.testing.assert_allclose(volume.geometry.affines[0] @ (*index, 1), position, atol=1e-4)
    layout = probe(files[0], slices=files)
    assert (layout.channels, layout.size, layout.modality) == (1, SHAPE, read_modality(files[0]))
    np.testing.assert_array_equal(layout.geometry.affines, volume.geometry.affines)


def read_modality(file: Path) -> str:
    return str(pydicom.dcmread(file).Modality)


def test_hounsfield_units_are_16_bits(tmp_path, voxels):
    files = write_series(tmp_path, voxels)
    array = read_image(files[0], slices=files).array
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array[0], voxels - 1024)


@pytest.mark.parametrize("name", SMALL.split())
def test_a_slice_is_a_picture(name):
    file = local(name)
    dataset = pydicom.dcmread(file)
    volume = read_image(file)
    expected = np.asarray(dataset.pixel_array, np.int32)
    expected = expected * int(dataset.get("RescaleSlope", 1)) + int(
        dataset.get("RescaleIntercept", 0)
    )
    np.testing.assert_array_equal(volume.array[0], expected)
    np.testing.assert_allclose(volume.spacing_mm, dataset.PixelSpacing, rtol=1e-6)
    assert probe(file)[:2] == (1, expected.shape)


@pytest.mark.parametrize(
    "name", ["SC_rgb_small_odd.dcm", "SC_rgb_rle.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm"]
)
def test_colors_are_rgb(name):
    volume = read_image(local(name))
    expected = np.moveaxis(pydicom.dcmread(local(name)).pixel_array, -1, 0)
    np.testing.assert_allclose(volume.array.astype(int), expected, atol=2)
    assert probe(local(name)).channels == 3
    assert probe(local(name)).is_color


def test_a_palette_is_rgb():
    assert read_image(local("examples_palette.dcm")).array.shape == (3, 350, 800)


def test_frames_are_sorted_by_position(tmp_path, voxels):
    file = write_enhanced(tmp_path / "enhanced", voxels, order=(2, 0, 3, 1))
    volume = read_image(file)
    np.testing.assert_array_equal(volume.array[0], voxels)
    assert volume.spacing_mm == (2.0, 0.8, 0.7)
    assert volume.geometry.orientation == "LPS"
    assert probe(file).size == SHAPE


def test_frames_without_positions_are_in_their_order(tmp_path, voxels):
    dataset = slice_dataset(voxels[0], "film", 0)
    set_pixels(dataset, voxels)
    dataset.NumberOfFrames = len(voxels)
    volume = read_image(save(dataset, tmp_path / "film.ima"))
    np.testing.assert_array_equal(volume.array[0], voxels - 1024)
    assert volume.spacing_mm is None
    assert volume.geometry.affines == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": (0.0, 0.3, 0.0)}, r"tilted gantry \(its slices are shifted by 8\.5°\)"),
        ({"skip": (1,)}, "lacks 1 slice: the distance of slices is 2 mm, but 4 mm"),
        ({"spacing": (0.0, 1.0, 1.0)}, r"several slices at the same position \(4 or more\)"),
        ({"tags": {"PixelSpacing": None}}, "do not state the size of their pixels"),
        ({"tags": {"ImagePositionPatient": None}}, "do not state their positions"),
    ],
)
def test_slices_that_form_no_volume(tmp_path, voxels, options, message):
    files = write_series(tmp_path / "series", voxels, **options)
    with pytest.raises(CrkdError, match=message):
        read_image(files[0], slices=files)


def test_irregular_or_mixed_slices(tmp_path, voxels):
    files = write_series(tmp_path, voxels)
    files += write_series(
        tmp_path, voxels[:1], name="more", first_number=9, origin=(-10, -20, 43.2)
    )
    with pytest.raises(CrkdError, match=r"irregular distances, from 2 to 7\.2 mm"):
        read_image(files[0], slices=files)
    files[-1:] = write_series(tmp_path, voxels[:1], name="turned", first_number=9, axes=OBLIQUE)
    with pytest.raises(CrkdError, match="several orientations"):
        read_image(files[0], slices=files)
    files[-1:] = write_series(tmp_path, voxels[:1, 1:], name="small", first_number=9)
    with pytest.raises(CrkdError, match="several sizes"):
        read_image(files[0], slices=files)


def test_inverted_measurements_are_refused_and_radiographs_shown_as_viewers_do(tmp_path, rng):
    voxels = rng.integers(0, 1000, (3, 8, 8))
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    files = write_series(tmp_path / "ct", voxels, tags=inverted)
    with pytest.raises(CrkdError, match="inverted gray values"):
        read_image(files[0], slices=files)
    (file,) = write_series(tmp_path / "x-ray", voxels[:1], tags={**inverted, "Modality": "DX"})
    shown = read_image(file).array.ravel()
    assert (np.diff(shown[np.argsort(voxels[0].ravel())]) <= 0).all()


def test_small_deviations_are_no_gaps(tmp_path, voxels):
    """Positions are often rounded to 0.1 mm."""
    files = write_series(tmp_path, voxels, spacing=(0.625, 1.0, 1.0))
    for file in files:
        dataset = pydicom.dcmread(file)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, round(z, 1)]
        dataset.save_as(file)
    assert read_image(files[0], slices=files).spacing_mm[0] == pytest.approx(0.625, abs=0.05)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtdose.dcm", r"is not an image \(RT Dose Storage\)"),
        ("liver_1frame.dcm", r"is not an image \(Segmentation Storage\)"),
        ("test-SR.dcm", r"is not an image \(Comprehensive SR Storage\)"),
        ("MR_truncated.dcm", "it declares 8.2 kB of data, the file has 8.1 kB"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "decompress it, for example with gdcmconv"),
        ("SC_rgb_rle_16bit.dcm", "has colors of 16 bits"),
        ("SC_rgb_rle_2frame.dcm", "is a film or series in color"),
        ("rtstruct.dcm", "is not a DICOM file"),
    ],
)
def test_what_is_no_image_is_named(name, message):
    with pytest.raises(CrkdError, match=message):
        read_image(local(name))


def frames_without_positions(dataset: pydicom.Dataset, count: int) -> None:
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.NumberOfFrames = count


@pytest.mark.parametrize(
    "damage",
    [
        lambda dataset: frames_without_positions(dataset, 2**31 - 1),
        lambda dataset: setattr(dataset, "BitsAllocated", 12),
        lambda dataset: setattr(dataset, "RescaleSlope", "0"),
        lambda dataset: setattr(dataset, "RescaleSlope", "1e300"),
        lambda dataset: delattr(dataset, "Rows"),
        lambda dataset: [delattr(dataset, name) for name in ("Rows", "SOPClassUID")],
    ],
    ids=["frames", "bits", "no slope", "huge slope", "no rows", "no kind"],
)
def test_impossible_tags_are_damage(tmp_path, voxels, damage):
    file = write_enhanced(tmp_path / "a.dcm", voxels)
    dataset = pydicom.dcmread(file)
    damage(dataset)
    dataset.save_as(file)
    with pytest.raises(CrkdError, match=r"a\.dcm is a damaged DICOM file; copy it again"):
        read_tags(file)


@pytest.mark.parametrize("tag", ["Rows", "Columns"])
def test_a_file_has_the_voxels_that_it_declares(tmp_path, voxels, tag):
    """GDCM makes up what multi-frame files lack."""
    file = write_enhanced(tmp_path / "a.dcm", voxels)
    dataset = pydicom.dcmread(file)
    dataset[tag].value += 1
    dataset.save_as(file)
    with pytest.raises(CrkdError, match=r"it declares .* of data, the file has .*; copy it again"):
        read_image(file)


def test_compressed_tags_do_not_fill_the_memory(tmp_path, voxels, monkeypatch):
    (file, *_) = write_series(tmp_path, voxels)
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(file)
    np.testing.assert_array_equal(read_image(file).array[0], voxels[0] - 1024)
    monkeypatch.setattr(deflated, "SMALL_BYTES", 1 << 20)
    dataset.add_new((0x0009, 0x0010), "LO", "x")
    dataset.add_new((0x0009, 0x1001), "OB", bytes(1 << 21))
    dataset.save_as(file)
    assert file.stat().st_size < 10_000
    with pytest.raises(CrkdError, match="is a damaged DICOM file; copy it again"):
        read_image(file)


def test_a_damaged_file_does_not_show_its_tags(tmp_path, voxels):
    (file, *_) = write_series(tmp_path, voxels)
    content = file.read_bytes()
    at = content.index(b"Doe^Jane")
    file.write_bytes(content[: at + 4])
    with pytest.raises(CrkdError, match="is a damaged DICOM file; copy it again") as error:
        read_image(file)
    assert "Doe" not in str(error.value)


def test_a_label_is_not_dicom(tmp_path, voxels):
    (file, *_) = write_series(tmp_path, voxels)
    with pytest.raises(CrkdError, match="convert the label to NIfTI"):
        read_label(file)


def test_tags_are_read_again_if_the_file_changes(tmp_path, voxels):
    (file, *_) = write_series(tmp_path, voxels)
    assert read_tags(file).modality == "CT"
    write_object(file, "SR", "1.2.840.10008.5.1.4.1.1.88.11")
    assert read_tags(file).modality == "SR"
