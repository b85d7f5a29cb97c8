"""Names and colors of classes in the files of viewers."""

import shlex

import nibabel
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from crkd_cli.config import Frame
from crkd_cli.data.store import ChannelInfo, ClassInfo, DatasetSpec
from crkd_cli.inference.label_tables import ITK_SNAP, SLICER, write_label_tables
from crkd_cli.inference.overlay import class_color

CLASSES = ((0, "background"), (4, "left atrium"), (1, 'the "wall"\n'))


def test_itk_snap(tmp_path):
    """Value, red, green, blue, opacity, visible in slices, visible in 3D, and the quoted name."""
    write_label_tables(tmp_path, CLASSES)
    lines = (tmp_path / ITK_SNAP).read_text(encoding="utf-8").splitlines()
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
    assert table.splitlines()[-1].split()[:2] == ["1" if class_numbers else "7", "ball"]
