"""A perfect network segments files of any orientation and spacing: masks lie on their images."""

from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crkd_cli.config import Frame
from crkd_cli.data.cases import ImageFile
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.inference.case_predictor import CasePredictor, PredictOptions
from crkd_cli.inference.cases import Case
from crkd_cli.inference.inferer import Inferer

SPEC = DatasetSpec(
    name="solid",
    source="folder",
    classes=numbered_classes(("background", "ball")),
    channels=(ChannelInfo(modality="MR", intensity="zscore"),),
    dims=3,
)
CENTER, RADIUS = np.array([20.0, -31.0, 12.0]), 14.0  # mm, in RAS
LINES = ("RL", "AP", "SI")


class Threshold(nn.Module):
    """Predicts class 1 where the normalized image is bright."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-20 * x, 20 * x], dim=1)


def write_ball(file: Path, orientation: str, spacing: tuple[float, ...]) -> np.ndarray:
    """Write a bright ball at `CENTER`, in the axes x, y, z of the file; return where it is."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, step) in enumerate(zip(orientation, spacing, strict=True)):
        line = next(i for i, line in enumerate(LINES) if code in line)
        affine[line, axis] = step if code in "RAS" else -step
    shape = (np.array([48, 44, 40]) / spacing).round().astype(int)
    middle = CENTER + np.array([2.0, -3.0, 1.0])
    affine[:3, 3] = middle - affine[:3, :3] @ (shape / 2)
    index = np.indices(shape).reshape(3, -1)
    positions = affine[:3, :3] @ index + affine[:3, 3:]
    ball = np.linalg.norm(positions - CENTER[:, None], axis=0).reshape(shape) < RADIUS
    nib.save(nib.Nifti1Image(np.where(ball, 100, 20).astype(np.int16), affine), file)
    return ball


def predict(file: Path, plan: Plan, frame: Frame, out: Path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Return the mask and the probabilities of class 1 [x, y, z] of an image file."""
    spec = msgspec.structs.replace(SPEC, plan=plan)
    notes: list[str] = []
    inferer = Inferer([Threshold()], frame, spec, torch.device("cpu"), notify=notes.append)
    (out / "probabilities").mkdir(parents=True)
    options = PredictOptions(probabilities=True)
    predictor = CasePredictor(inferer, spec, out, options)
    case = Case((ImageFile(file),), Path(file.name), str(file))
    assert predictor.write(predictor.infer(predictor.read(case))) is not None
    assert notes == []
    with np.load(out / "probabilities" / f"{case.name}.npz") as arrays:
        probabilities, affine = arrays["probabilities"], arrays["affine"]
    mask = nib.load(out / file.name)
    np.testing.assert_allclose(affine, mask.affine, atol=1e-5)
    return mask, probabilities[1].T


def center_of(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


@pytest.mark.parametrize("orientation", ["LPS", "SAR"])
@pytest.mark.parametrize("frame", [Frame(patch=(32, 32, 32)), Frame(patch=(32, 48))], ids=str)
def test_turned_volumes_come_back_exactly(tmp_path, orientation, frame):
    ball = write_ball(tmp_path / "a.nii", orientation, (1.0, 1.2, 1.6))
    mask, probabilities = predict(tmp_path / "a.nii", Plan("RAS", "native"), frame, tmp_path / "o")
    np.testing.assert_array_equal(mask.affine, nib.load(tmp_path / "a.nii").affine)
    np.testing.assert_array_equal(mask.get_fdata() > 0, ball)
    np.testing.assert_array_equal(probabilities > 0.5, ball)


@pytest.mark.parametrize(
    ("orientation", "spacing", "target", "least_dice"),
    [
        ("LPS", (0.7, 0.9, 1.4), (1.0, 1.0, 1.0), 0.96),
        ("SAR", (0.8, 1.1, 4.0), (1.0, 1.0, 1.0), 0.96),
        ("PIL", (0.7, 0.9, 1.4), (4.0, 1.0, 1.0), 0.9),
    ],
)
def test_resampled_volumes_lie_where_they_were(tmp_path, orientation, spacing, target, least_dice):
    ball = write_ball(tmp_path / "a.nii", orientation, spacing)
    plan, frame = Plan("RAS", target), Frame(patch=(16, 32, 32))
    mask, probabilities = predict(tmp_path / "a.nii", plan, frame, tmp_path / "o")
    np.testing.assert_array_equal(mask.affine, nib.load(tmp_path / "a.nii").affine)
    predicted = mask.get_fdata() > 0
    assert predicted.shape == ball.shape == probabilities.shape
    decided = np.abs(probabilities - 0.5) > 1e-5
    np.testing.assert_array_equal((probabilities > 0.5)[decided], predicted[decided])
    dice = 2 * (predicted & ball).sum() / (predicted.sum() + ball.sum())
    assert dice > least_dice
    shift = center_of(predicted, mask.affine) - center_of(ball, mask.affine)
    assert np.abs(shift).max() < min(*spacing, *target) / 3


def test_files_without_orientation_are_not_turned(tmp_path, rng):
    """NIfTI with both codes 0 states none; that is said once."""
    spec = msgspec.structs.replace(SPEC, plan=Plan("LPI", "native"))
    notes: list[str] = []
    frame = Frame(patch=(16, 16, 16))
    inferer = Inferer([Threshold()], frame, spec, torch.device("cpu"), notify=notes.append)
    predictor = CasePredictor(inferer, spec, tmp_path, PredictOptions())
    image = rng.normal(size=(9, 10, 11)).astype(np.float32)
    for name in ("a.nii", "b.nii"):
        nib.save(nib.Nifti1Image(image, None), tmp_path / name)
        case = Case((ImageFile(tmp_path / name),), Path(f"{name}.nii"), str(tmp_path / name))
        predictor.write(predictor.infer(predictor.read(case)))
        mask = nib.load(tmp_path / f"{name}.nii").get_fdata()
        np.testing.assert_array_equal(mask > 0, image > image.mean())
    assert notes == ["note: a.nii: the orientation is not stated, assumed: LPI"]
