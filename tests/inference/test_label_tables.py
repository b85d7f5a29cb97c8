"""Names and colors of classes in the files of viewers."""

import shlex
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.colors import to_rgb

from crkd_cli.config import Frame
from crkd_cli.data.raw import formats
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.raw.geometry import Geometry
from crkd_cli.data.store import ChannelInfo, ClassInfo, DatasetSpec
from crkd_cli.inference.label_tables import ITK_SNAP, SLICER, label_entries, write_label_tables
from crkd_cli.inference.overlay import class_color

CLASSES = ((0, "background"), (4, "left atrium"), (1, 'the "wall"\n'))


def test_itk_snap(tmp_path):
    """Value, red, green, blue, opacity, visible in slices, visible in 3D, and the quoted name."""
    write_label_tables(tmp_path, CLASSES)
    lines = (tmp_path / ITK_SNAP).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# ITK-SnAP Label Description File"
    assert [shlex.split(line) for line in lines if not line.startswith("#")] == [
        ["0", "0", "0", "0", "0", "0", "0", "background"],
        ["4", "230", "159", "0", "1", "1", "1", "left atrium"],
        ["1", "86", "180", "233", "1", "1", "1", r"the 'wall'\n"],
    ]


def test_slicer(tmp_path):
    """Value, name without spaces, red, green, blue, opacity."""
    write_label_tables(tmp_path, CLASSES)
    lines = (tmp_path / SLICER).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# Color table file")
    assert [line.split() for line in lines if not line.startswith("#")] == [
        ["0", "background", "0", "0", "0", "0"],
        ["4", "left_atrium", "230", "159", "0", "255"],
        ["1", 'the_"wall"\\n', "86", "180", "233", "255"],
    ]


def test_colors_are_those_of_the_overlays(tmp_path):
    write_label_tables(tmp_path, [(k, f"c{k}") for k in range(30)])
    lines = (tmp_path / SLICER).read_text(encoding="utf-8").splitlines()
    for k in range(1, 30):
        numbers = [int(number) / 255 for number in lines[2 + k].split()[2:5]]
        assert numbers == pytest.approx(to_rgb(class_color(k)))


VOLUME = np.arange(3 * 4 * 5).reshape(3, 4, 5) % 2 * 7


def volume() -> Volume:
    affine = np.array([[0, 0, 2.5, 10], [-1.5, 0, 0, 20], [0, 0.5, 0, -30]])
    geometry = Geometry((1.5, 0.5, 2.5), (affine,))
    return Volume(VOLUME[None], geometry.spacing, VOLUME.shape, geometry)


def test_nifti_headers_name_the_classes(tmp_path):
    """As nibabel reads them; voxels and affine are those of a file without names."""
    entries = label_entries(((0, "background"), (7, "a < b & c"), (-1, "wall")))
    plain, named = tmp_path / "plain.nii.gz", tmp_path / "named.nii.gz"
    formats.write_label(plain, VOLUME, volume())
    formats.write_label(named, VOLUME, volume(), entries)
    before, after = nibabel.load(plain), nibabel.load(named)
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.dataobj, after.dataobj)
    assert np.array_equal(formats.read_label(named).array, VOLUME)
    image = sitk.ReadImage(str(named))
    assert np.array_equal(sitk.GetArrayFromImage(image), VOLUME)
    assert image.GetDirection() == sitk.ReadImage(str(plain)).GetDirection()

    nibabel.save(nibabel.Nifti1Image(VOLUME.T, after.affine, after.header), tmp_path / "copy.nii")
    assert nibabel.load(tmp_path / "copy.nii").header.extensions == after.header.extensions

    assert after.header.get_intent()[0] == "label"
    assert not before.header.extensions
    (extension,) = after.header.extensions
    assert extension.get_code() == nibabel.nifti1.extension_codes["caret"]
    table = ElementTree.fromstring(extension.text.strip()).iter("Label")
    labels = [
        (label.get("Key"), label.text, label.get("Red"), label.get("Blue")) for label in table
    ]
    assert labels == [("7", "a < b & c", "0.901961", "0"), ("-1", "wall", "0.337255", "0.913725")]


def test_nrrd_headers_name_the_classes(tmp_path):
    """The fields of segmentations of 3D Slicer."""
    entries = label_entries(((0, "background"), (7, "left: Ä := b"), (1, "wall")))
    file = tmp_path / "named.nrrd"
    formats.write_label(file, VOLUME, volume(), entries)
    assert np.array_equal(formats.read_label(file).array, VOLUME)
    image = sitk.ReadImage(str(file))
    assert np.array_equal(sitk.GetArrayFromImage(image), VOLUME)
    assert image.GetSpacing() == pytest.approx((1.5, 0.5, 2.5))
    fields = {
        key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Seg")
    }
    assert len(fields) == 2 * 6
    assert {key: fields[f"Segment0_{key}"] for key in ("ID", "Name", "LabelValue", "Layer")} == {
        "ID": "Segment_7",
        "Name": "left: Ä := b",
        "LabelValue": "7",
        "Layer": "0",
    }
    assert fields["Segment0_Color"] == "0.901961 0.623529 0"
    assert fields["Segment1_Name"] == "wall"
    assert fields["Segment1_Extent"] == "0 4 0 3 0 2"


@pytest.mark.parametrize("class_numbers", [False, True])
def test_beside_the_masks_of_volumes(class_numbers, make_checkpoint, cli, scans, rng):
    classes = (ClassInfo(name="background", values=(0,)), ClassInfo(name="ball", values=(7,)))
    channels = (ChannelInfo(modality="MR", intensity="zscore"),)
    spec = DatasetSpec(name="toy", source="folder", classes=classes, channels=channels, dims=3)
    checkpoint = make_checkpoint(spec, Frame(patch=(16, 16, 16)))
    image = rng.uniform(0, 100, (16, 16, 16)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), scans / "a.nii")
    options = ["--class-numbers"] if class_numbers else []
    result = cli("predict", scans, "--checkpoint", checkpoint, *options)
    assert result.exit_code == 0, result.stderr
    table = (scans.with_name("scans-masks") / SLICER).read_text(encoding="utf-8")
    value = "1" if class_numbers else "7"
    assert table.splitlines()[-1].split()[:2] == [value, "ball"]
    header = nibabel.load(scans.with_name("scans-masks") / "a.nii").header
    assert f'Key="{value}"'.encode() in header.extensions[0].content
