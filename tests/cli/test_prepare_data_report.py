"""What `prepare-data` prints about spacings and the sizes of classes, by hand."""

import numpy as np
import pytest
import SimpleITK as sitk

from crkd_cli.data.labels import class_lines
from crkd_cli.data.report import describe_spacings
from crkd_cli.data.store import numbered_classes


@pytest.mark.parametrize(
    ("spacings", "axes", "line"),
    [
        ([(5, 1.5, 1.5)] * 2, "zyx", "spacing (z × y × x): 5 × 1.5 × 1.5 mm"),
        (
            [(5, 1.5, 1.5), (10, 0.7, 1.6), (6, 1.25, 1.5)],
            "zyx",
            "spacing (z × y × x): 5 × 0.7 × 1.5 mm to 10 × 1.5 × 1.6 mm, median 6 × 1.25 × 1.5 mm",
        ),
        (
            [None, (0.2, 0.3), None],
            "yx",
            "spacing (y × x): 0.2 × 0.3 mm; 2 of 3 files do not state it",
        ),
        ([None, None], "zyx", "spacing: not stated"),
        ([None, None], "yx", ""),
    ],
)
def test_spacings_by_hand(spacings, axes, line):
    assert describe_spacings(spacings, axes) == line


@pytest.mark.parametrize(
    ("dims", "spacings", "lines"),
    [
        (
            3,
            [(2, 1, 1), (5, 2, 2), (1, 1, 1)],
            [
                "background (0): in 3 of 3 labels, 92.2 % of the voxels",
                # 200 · 2 mm³, 600 · 20 mm³; the third label has none
                "liver (1): in 2 of 3 labels, 7.84 % of the voxels; 0.4 to 12 ml, median 6.2 ml",
                "tumor (2): in 0 of 3 labels, 0 % of the voxels",
            ],
        ),
        (
            3,
            [(2, 1, 1), None, (1, 1, 1)],
            [
                "background (0): in 3 of 3 labels, 92.2 % of the voxels",
                "liver (1): in 2 of 3 labels, 7.84 % of the voxels; 200 to 600 voxels, "
                "median 400 voxels",
                "tumor (2): in 0 of 3 labels, 0 % of the voxels",
            ],
        ),
        (
            2,
            [(0.5, 0.5)] * 3,
            [
                "background (0): in 3 of 3 labels, 92.2 % of the pixels",
                "liver (1): in 2 of 3 labels, 7.84 % of the pixels; 50 to 150 mm², median 100 mm²",
                "tumor (2): in 0 of 3 labels, 0 % of the pixels",
            ],
        ),
    ],
)
def test_sizes_of_classes_by_hand(dims, spacings, lines):
    sizes = [(3000, 200, 0), (2400, 600, 0), (4000, 0, 0)]
    classes = numbered_classes(("background", "liver", "tumor"))
    assert class_lines(classes, sizes, spacings, dims) == lines


def test_sizes_are_those_of_the_files_although_they_are_resampled(prepare_data, tmp_path, rng):
    """A cube of 20 × 20 × 20 voxels, on two grids: 8 ml, and 2 · 8 ml."""
    for folder in ("images", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    label = np.zeros((32, 32, 32), np.uint8)
    label[4:24, 4:24, 4:24] = 1
    for name, spacing in (("a", (1, 1, 1)), ("b", (1, 1, 2))):
        image = rng.normal(100, 20, label.shape).astype(np.float32)
        for folder, array in (("images", image), ("labels", label)):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(spacing)
            sitk.WriteImage(volume, str(tmp_path / "mine" / folder / f"{name}.nii.gz"))
    code, err = prepare_data("mine", "--source", tmp_path / "mine")
    assert code == 0, err
    lines = err.splitlines()
    assert any(line.startswith("plan: spacing 1.5 × 1 × 1 ") for line in lines), err
    assert "spacing (z × y × x): 1 × 1 × 1 mm to 2 × 1 × 1 mm, median 1.5 × 1 × 1 mm" in lines, err
    assert "class 1 (1): in 2 of 2 labels, 24.4 % of the voxels; 8 to 16 ml, median 12 ml" in lines
