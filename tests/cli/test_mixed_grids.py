"""Volumes of mixed orientations and spacings, from files to masks, by the commands a user types."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ORIENTATIONS = ["LPS", "RAS", "LPS", "PIL", "LPS", "SAR"]
SPACINGS = {
    "3D": [(1.0, 1.0, 1.2), (1.4, 1.4, 1.6)],
    "2D": [(1.0, 1.0, 4.0), (1.3, 1.3, 6.0)],  # R/L, A/P, S/I in mm
}
SIDES = np.array([26.0, 24.0, 24.0])  # mm
SPLIT = """\
dataset: mixed
name: by hand
train: [c0, c1, c2]
labeled: [c0, c1]
val: [c4]
test: [c3, c5]
"""
LINES = ("RL", "AP", "SI")


def write_volumes(root: Path, spacings: list[tuple[float, ...]], rng: np.random.Generator) -> None:
    """Write six volumes with a bright ball; the label of the last one is saved as RAS."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number, orientation in enumerate(ORIENTATIONS):
        axes = [next(i for i, line in enumerate(LINES) if code in line) for code in orientation]
        spacing = np.array(spacings[number % 2])[axes]
        shape = (SIDES[axes] / spacing).round().astype(int)
        affine = np.eye(4)
        affine[:3, :3] = 0
        for column, (axis, code) in enumerate(zip(axes, orientation, strict=True)):
            affine[axis, column] = spacing[column] if code in "RAS" else -spacing[column]
        affine[:3, 3] = rng.uniform(-50, 50, 3)
        index = np.indices(shape)
        ball = (
            sum(
                (i - (side - 1) / 2) ** 2 * step**2
                for i, side, step in zip(index, shape, spacing, strict=True)
            )
            < 8**2
        )
        image = 50 + 100 * ball + rng.normal(0, 10, shape)
        nib.save(
            nib.Nifti1Image(image.astype(np.float32), affine), root / f"images/c{number}.nii.gz"
        )
        label = nib.Nifti1Image(ball.astype(np.uint8), affine)
        if number == 5:
            label = nib.as_closest_canonical(label)
        nib.save(label, root / f"labels/c{number}.nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["2D", "3D"])
def test_from_files_of_mixed_grids_to_masks(cli, tmp_path, rng, monkeypatch, network):
    """Masks lie on their images, and their Dice with the label files is that of the evaluation."""
    monkeypatch.chdir(tmp_path)
    write_volumes(tmp_path / "raw", SPACINGS[network], rng)
    patch = "[16, 16]" if network == "2D" else "[16, 16, 16]"
    (tmp_path / "raw/dataset.yaml").write_text(f"plan: {{patch: {patch}, batch: 2}}\n")
    (tmp_path / "split.yaml").write_text(SPLIT)

    prepared = run(cli, "prepare-data", "mixed", "--source", "raw")
    assert "plan: orientation LPS (as 3 of 6 files; 3 turned to it)" in prepared
    assert "are resampled" in prepared
    run(
        cli, "train", "--dataset", "mixed", "--split", "split.yaml", "--method", "supervised",
        "--out", "run", "--device", "cpu", "--set", "train.steps=2", "--set", "train.eval_every=1",
        "--set", "model.widths=[4,4,4,4,4]",
    )  # fmt: skip
    run(cli, "evaluate", "run/last.pth", "--device", "cpu", "--out", "scores")
    run(
        cli, "predict", "raw/images", "--checkpoint", "run/last.pth", "--device", "cpu", "--overlay"
    )

    with (tmp_path / "scores/cases.csv").open() as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["c3", "c5"]
    for number in range(6):
        image = nib.load(tmp_path / f"raw/images/c{number}.nii.gz")
        mask = nib.load(tmp_path / f"raw/images-masks/c{number}.nii.gz")
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.shape == image.shape
        if row := rows.get(f"c{number}"):
            label = nib.as_closest_canonical(nib.load(tmp_path / f"raw/labels/c{number}.nii.gz"))
            truth, labels = label.get_fdata(), nib.as_closest_canonical(mask).get_fdata()
            assert int(row["truth_size"]) == truth.sum()
            assert int(row["predicted_size"]) == labels.sum()
            dice = 2 * (truth * labels).sum() / (truth.sum() + labels.sum())
            assert float(row["dice"]) == pytest.approx(dice, abs=1e-5)
            assert float(row["hd95_mm"]) > 0


def run(cli, *args: str) -> str:
    result = cli(*args)
    assert result.exit_code == 0, result.stderr
    return result.stderr
