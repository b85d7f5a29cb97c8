"""`crkd train` warns of flips that exchange the classes of a user's own data."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.config import DataConfig, Frame
from crkd_cli.data.plan import Plan
from crkd_cli.data.prepare import prepare
from crkd_cli.data.sources.folder import Folder
from crkd_cli.data.store import ChannelInfo, DatasetSpec, Store, numbered_classes
from crkd_cli.training.sides import warn_of_sides

SLICES, VOLUMES = Frame(patch=(16, 16)), Frame(patch=(16, 16, 16))
# In the coordinates of nibabel: x to the right, y to the front, z to the head.
CENTERS = {"left": (-4, 0, 0), "right": (4, 0, 0), "anterior": (0, 4, 0), "posterior": (0, -4, 0)}
CENTERS |= {"upper": (0, 0, 4), "lower": (0, 0, -4)}


def data(frame: Frame, mirror: tuple[int, ...] | None = None, augment: str = "strong") -> Any:
    return DataConfig(
        name="mine",
        frame=frame,
        labeled_batch_size=1,
        unlabeled_batch_size=1,
        augment=augment,
        mirror=mirror,
    )


def spec(names: tuple[str, ...], plan: Plan | None) -> DatasetSpec:
    return DatasetSpec(
        name="mine",
        source="folder",
        classes=numbered_classes(("background", *names)),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
        plan=plan,
    )


def write_case(root: Path, names: tuple[str, ...], codes: str) -> None:
    """Write a volume whose axes x, y, z point to `codes`, with a small cube for each class."""
    ornt = nib.orientations.axcodes2ornt(codes)
    affine = nib.orientations.inv_ornt_aff(ornt, (16, 17, 18))
    affine[:3, 3] -= affine[:3] @ (8, 8, 8, 1)  # voxel 8, 8, 8 is the origin
    label = np.zeros((16, 17, 18), np.uint8)
    for number, name in enumerate(names, start=1):
        x, y, z, _ = np.rint(np.linalg.inv(affine) @ (*CENTERS[name], 1)).astype(int)
        label[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = number
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    nib.save(nib.Nifti1Image(label.astype(np.float32), affine), root / "images" / "a.nii")
    nib.save(nib.Nifti1Image(label, affine), root / "labels" / "a.nii")
    classes = ", ".join(f"{name}: {number}" for number, name in enumerate(names, start=1))
    (root / "dataset.yaml").write_text(f"classes: {{{classes}}}\n")


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LSA"])
@pytest.mark.parametrize(
    "names", [("left", "right"), ("anterior", "posterior"), ("upper", "lower")]
)
def test_the_axis_is_the_one_that_exchanges_the_classes(
    tmp_path: Path, names: tuple[str, ...], codes: str
) -> None:
    """The proposed axes are those along which both classes have the same mean position."""
    write_case(tmp_path / "mine", names, codes)
    report = prepare("mine", Folder(), tmp_path / "mine", tmp_path / "store", progress)
    assert not report.failed
    store = Store(tmp_path / "store")
    first, second = (np.argwhere(store.label("a") == number).mean(axis=0) for number in (1, 2))
    kept = [axis for axis in range(3) if first[axis] == second[axis]]
    assert len(kept) == 2

    warning = warn_of_sides(data(VOLUMES), store.spec)
    assert warning is not None
    assert warning.startswith(f"class names state sides ({names[0]}, {names[1]}), which flips ")
    assert warning.endswith(f"--set data.mirror={kept}".replace(", ", ","))
    # Slices are cut along the first axis, and flipped along the others.
    warning = warn_of_sides(data(SLICES), store.spec)
    if 0 not in kept:
        assert warning is None
    else:
        assert warning is not None
        assert warning.endswith(f"--set data.mirror=[{kept[1] - 1}]")


@pytest.mark.parametrize(
    ("names", "frame", "mirror"),
    [
        (("LeftKidney", "KIDNEY_RIGHT", "liver"), VOLUMES, "[0,1]"),
        (("left kidney",), SLICES, "[0]"),
        (("lung-lower-left", "heart"), VOLUMES, "[1]"),
        (("lung-lower-left", "heart"), SLICES, "[0]"),
    ],
)
def test_names(names: tuple[str, ...], frame: Frame, mirror: str) -> None:
    """Classes without a side are not named, and all axes of a name count."""
    planned = spec(names, Plan(orientation="RAS"))
    warning = warn_of_sides(data(frame), planned)
    assert warning is not None
    assert warning.endswith(f"--set data.mirror={mirror}")
    assert ("liver" in warning, "heart" in warning) == (False, False)
    assert warn_of_sides(data(frame, (0,)), planned) is None  # the user has decided
    assert warn_of_sides(data(frame), spec(names, None)) is None  # a public dataset


def test_the_published_augmentation_does_not_flip_volumes_along_z() -> None:
    published = data(VOLUMES, augment="published")
    planned = Plan(orientation="RAS")
    assert warn_of_sides(published, spec(("lung_upper", "lung_lower"), planned)) is None
    warning = warn_of_sides(published, spec(("lung_lower_left",), planned))
    assert warning is not None
    assert "along axis 2 exchange" in warning
    assert warning.endswith("--set data.mirror=[1]")


@pytest.mark.parametrize("names", [("liver", "cleft"), ("upright", "kidney_l")])
def test_other_names(names: tuple[str, ...]) -> None:
    assert warn_of_sides(data(VOLUMES), spec(names, Plan(orientation="RAS"))) is None
    assert warn_of_sides(data(VOLUMES), spec(names, Plan(orientation="native"))) is None


@pytest.mark.parametrize(("frame", "words"), [(SLICES, "1: left and right"), (VOLUMES, "2: x")])
def test_an_unknown_orientation(frame: Frame, words: str) -> None:
    planned = spec(("right lung", "left lung"), Plan(orientation="native"))
    warning = warn_of_sides(data(frame), planned)
    assert warning is not None
    assert "flips may exchange" in warning
    assert words in warning
