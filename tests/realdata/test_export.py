"""Real scans get the same masks from an exported network, without crkd, as from `crkd predict`."""

import runpy
from pathlib import Path

import nibabel
import numpy as np
import pytest

from crkd_cli.config import Frame
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes

pytestmark = pytest.mark.realdata
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "predict_onnx.py"


@pytest.mark.parametrize("patch", [(64, 96), (8, 64, 64)], ids=str)
def test_masks_of_real_scans(patch, make_checkpoint, cli, shared_data, tmp_path):
    spec = DatasetSpec(
        name="hearts",
        source="folder",
        classes=numbered_classes(("background", "left", "middle", "right")),
        channels=(ChannelInfo(modality="MR", intensity="zscore"),),
        dims=3,
        plan=Plan("RAS", "native"),
    )
    checkpoint = make_checkpoint(spec, Frame(patch=patch))
    scans, model = tmp_path / "scans", tmp_path / "model.onnx"
    scans.mkdir()
    for patient, frame in (("003", "01"), ("011", "01")):
        folder = shared_data / "acdc_nifti" / "training" / f"patient{patient}"
        scan = f"patient{patient}_frame{frame}.nii.gz"
        (scans / scan).symlink_to(folder / scan)
    for line in (("export", checkpoint, model), ("predict", scans, "--checkpoint", checkpoint)):
        result = cli(*line)
        assert result.exit_code == 0, result.stderr
    for scan in sorted(scans.iterdir()):
        runpy.run_path(str(EXAMPLE))["main"](str(model), str(scan), str(tmp_path / "mask.nii.gz"))
        masks = (tmp_path / "mask.nii.gz", tmp_path / "scans-masks" / scan.name)
        actual, expected = (np.asanyarray(nibabel.load(mask).dataobj) for mask in masks)
        assert len(np.unique(expected)) > 1
        # An untrained network often finds two classes almost equally probable.
        assert (actual != expected).mean() < 1e-4
