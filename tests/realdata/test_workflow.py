"""From raw files to masks on real cases of every public dataset."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from crkd_cli.data.raw import formats
from crkd_cli.runtime.run_folder import result_checkpoint

pytestmark = pytest.mark.realdata

SMALL = [
    "train.steps=24",
    "train.eval_every=12",
    "train.log_every=8",
    "model.widths=[8, 8, 16, 16, 32]",
    "methods.crkd.contrast_samples=32",
    "data.labeled_batch_size=2",
    "data.unlabeled_batch_size=2",
]
# Dataset, raw files, --labeled, data.frame, image to predict.
CASES = {
    "acdc h5": ("acdc", "acdc", "3", "{resize: [96, 96]}", "acdc/data/patient011_frame01.h5"),
    "acdc nifti": (
        "acdc",
        "acdc_nifti",
        "1",
        "{resize: [96, 96]}",
        "acdc_nifti/training/patient011/patient011_frame01.nii.gz",
    ),
    "la": (
        "la",
        "la",
        "4",
        "{patch: [64, 64, 48], stride: [32, 32, 24]}",
        "la/2018LA_Seg_Training Set/UPT6DX9IQY9JAZ7HJKA7/mri_norm2.h5",
    ),
    "isic2018": (
        "isic2018",
        "isic2018",
        "5%",
        "{resize: [96, 96]}",
        "isic2018/ISIC2018_Task1-2_Training_Input/ISIC_0000169.jpg",
    ),
    "kvasir": (
        "kvasir",
        "kvasir",
        "5%",
        "{resize: [96, 96]}",
        "kvasir/Kvasir-SEG/images/cju2htabevq9108015qjei0x7.jpg",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_from_raw_scans_to_masks(
    case: str,
    cli: Callable[..., Result],
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, raw, labeled, frame, image = CASES[case]
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        result = cli(*args)
        assert result.exit_code == 0, f"crkd {' '.join(map(str, args))}\n{result.stderr}"
        return result

    run("prepare-data", name, "--source", shared_data / raw)
    run("make-splits", name, "--labeled", labeled, "--present-only")
    overrides = [f"--set={override}" for override in (*SMALL, f"data.frame={frame}")]
    run("train", "--dataset", name, "--labeled", labeled, *overrides)
    folder = tmp_path / "runs" / f"{name}-crkd-{labeled.replace('%', 'pct')}"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"pixel", "feature", "semantic", "entropy", "kept"} <= log[-1].keys() | log[-2].keys()
    checkpoint = result_checkpoint(folder)
    for protocol in ("strict", "paper"):
        summary = json.loads(run("evaluate", checkpoint, "--protocol", protocol, "--json").stdout)
        assert summary["protocol"] == protocol
    run("predict", shared_data / image, "--checkpoint", checkpoint, "--out", "masks", "--overlay")
    (mask,) = [file for file in (tmp_path / "masks").iterdir() if formats.suffix(file)]
    assert_same_geometry(shared_data / image, mask)
    assert len(list((tmp_path / "masks" / "overlays").iterdir())) == 1


def assert_same_geometry(image: Path, mask: Path) -> None:
    original, written = formats.read_image(image), formats.read_label(mask)
    assert written.array.shape == original.size
    assert np.issubdtype(written.array.dtype, np.integer)
    if original.geometry is not None and written.geometry is not None:
        assert written.geometry.spacing == original.geometry.spacing
        assert written.geometry.distance(original.geometry, original.size[::-1]) < 1e-4
