"""Exported networks: the logits of PyTorch, and a description that another program can use."""

import json
import runpy
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import Result

from crkd_cli.config import Frame
from crkd_cli.data.plan import Plan
from crkd_cli.data.store import ChannelInfo, ClassInfo, DatasetSpec, Window
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference import export as module
from crkd_cli.inference.export import OPSET, describe, export
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint

Cli = Callable[..., Result]
CPU = torch.device("cpu")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "predict_onnx.py"
MR = ChannelInfo(modality="MR", intensity="zscore")
CT = ChannelInfo(modality="CT", intensity="window", window=Window(-50.0, 200.0, 60.0, 40.0))
RGB = ChannelInfo(modality="RGB", intensity="uint8")


def spec_of(dims: int, *channels: ChannelInfo, plan: Plan | None = None) -> DatasetSpec:
    classes = (ClassInfo(name="background", values=(0,)), ClassInfo(name="ball", values=(7, 8)))
    return DatasetSpec(
        name="toy", source="folder", classes=classes, channels=channels, dims=dims, plan=plan
    )


def predict_by_example(model: Path, scan: Path, mask: Path) -> None:
    """Run the example of the documentation."""
    runpy.run_path(str(EXAMPLE))["main"](str(model), str(scan), str(mask))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "spec", "frame"),
    [
        ("unet", spec_of(2, MR, MR), Frame(resize=(32, 48))),
        ("unet", spec_of(3, MR), Frame(patch=(8, 32, 16))),  # its strides differ by axis
        ("vnet", spec_of(3, MR, MR), Frame(patch=(32, 32, 16))),
        ("efficientnet_lite0", spec_of(2, RGB), Frame(resize=(64, 32))),
    ],
)
def test_logits_of_any_batch_are_those_of_pytorch(
    network, spec, frame, make_checkpoint, cli: Cli
) -> None:
    file = make_checkpoint(spec, frame, network=network)
    result = cli("export", file)
    assert result.exit_code == 0, result.stderr
    model, about = file.with_suffix(".onnx"), json.loads(file.with_suffix(".json").read_text())
    assert f"written: {model} and {file.with_suffix('.json')}" in result.stderr
    content = onnx.load(model)
    onnx.checker.check_model(content, full_check=True)
    assert [opset.version for opset in content.opset_import if not opset.domain] == [OPSET]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert {"name": given.name, "shape": given.shape} == about["input"]
    assert {"name": returned.name, "shape": returned.shape} == about["output"]
    predictor = load_predictor(load_checkpoint(file), CPU)
    for batch in (1, 5):
        images = torch.rand(batch, *given.shape[1:])
        with torch.inference_mode():
            expected = predictor(images).numpy()
        (logits,) = session.run(None, {given.name: images.numpy()})
        np.testing.assert_allclose(logits, expected, atol=1e-3)
        assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("orientation", "channel", "frame", "shape"),
    [
        ("LPS", MR, Frame(patch=(16, 32, 16)), (50, 41, 30)),
        ("SAR", CT, Frame(patch=(16, 32, 16)), (20, 40, 12)),  # padded
        ("RAS", MR, Frame(patch=(32, 48)), (60, 40, 5)),
    ],
)
def test_the_example_predicts_the_same_masks(
    orientation, channel, frame, shape, make_checkpoint, cli: Cli, scans: Path, rng
) -> None:
    file = make_checkpoint(spec_of(3, channel, plan=Plan("RAS", "native")), frame)
    export(load_checkpoint(file), file.with_suffix(".onnx"))
    scan = scans / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(smooth(rng, shape), affine_of(orientation)), scan)
    result = cli("predict", scans, "--checkpoint", file)
    assert result.exit_code == 0, result.stderr
    expected = nibabel.load(scans.with_name("scans-masks") / "a.nii.gz")
    predict_by_example(file.with_suffix(".onnx"), scan, scans / "mask.nii.gz")
    actual = nibabel.load(scans / "mask.nii.gz")
    np.testing.assert_allclose(actual.affine, expected.affine, atol=1e-5)
    actual, expected = (np.asanyarray(mask.dataobj) for mask in (actual, expected))
    assert set(np.unique(expected)) == {0, 7}
    assert (actual == expected).mean() > 0.9999


def smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Blobs with values of about −100 to 250."""
    coarse = rng.uniform(-100, 250, [-(-side // 4) for side in shape])
    for axis in range(3):
        coarse = coarse.repeat(4, axis)
    return coarse[tuple(map(slice, shape))].astype(np.float32)


def affine_of(orientation: str) -> np.ndarray:
    """An affine whose axes x, y and z point to the given letters."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, letter in enumerate(orientation):
        line = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[line, axis] = 1.5 if letter in "RAS" else -1.5
    return affine


@pytest.mark.slow
def test_an_example_that_does_not_resample_says_so(make_checkpoint, tmp_path: Path) -> None:
    spec = spec_of(3, MR, plan=Plan("RAS", (1.0, 1.0, 1.0)))
    file = make_checkpoint(spec, Frame(patch=(16, 16, 16)))
    export(load_checkpoint(file), tmp_path / "m.onnx")
    with pytest.raises(SystemExit, match="the volumes of this model are resampled"):
        predict_by_example(tmp_path / "m.onnx", tmp_path / "a.nii", tmp_path / "b.nii")


def test_the_description(make_checkpoint) -> None:
    spec = spec_of(3, MR, CT, plan=Plan("RAS", (1.0, 2.0, 3.0)))
    checkpoint = load_checkpoint(make_checkpoint(spec, Frame(patch=(16, 16, 16))))
    about = json.loads(json.dumps(describe(checkpoint)))
    assert about["input"] == {"name": "image", "shape": ["batch", 2, 16, 16, 16]}
    assert about["axes"] == ["batch", "channel or class", "z", "y", "x"]
    assert [channel["normalization"] for channel in about["channels"]] == [
        {"kind": "zscore"},
        {"kind": "window", "low": -50.0, "high": 200.0, "mean": 60.0, "std": 40.0},
    ]
    assert about["grid"]["orientation"] == "RAS"
    assert about["grid"]["spacing_mm"] == [1.0, 2.0, 3.0]
    assert about["frame"]["patch"] == [16, 16, 16]
    assert about["classes"][1] == {"number": 1, "name": "ball", "value": 7}


@pytest.mark.parametrize(
    ("dims", "z_last", "frame", "axes"),
    [
        (3, True, Frame(patch=(16, 32, 16)), ["x", "y", "z"]),  # la
        (3, False, Frame(patch=(16, 32, 16)), ["z", "y", "x"]),
        (3, False, Frame(patch=(32, 32)), ["y", "x"]),
        (2, False, Frame(resize=(32, 32)), ["y", "x"]),
    ],
)
def test_the_order_of_the_axes(dims, z_last, frame, axes, make_checkpoint) -> None:
    spec = msgspec.structs.replace(spec_of(dims, MR), z_last=z_last)
    about = describe(load_checkpoint(make_checkpoint(spec, frame)))
    assert about["axes"][2:] == axes


@pytest.mark.slow
def test_an_export_that_differs_is_not_kept(make_checkpoint, monkeypatch, tmp_path: Path) -> None:
    file = make_checkpoint(spec_of(2, MR), Frame(resize=(32, 32)))
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(CrkdError, match="was not written: its logits differ by"):
        export(load_checkpoint(file), tmp_path / "out" / "m.onnx")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "existing", "message"),
    [
        ("m.pth", None, "m.pth does not end in .onnx"),
        ("m.onnx", "m.onnx", "m.onnx exists already; give another name, or add --overwrite"),
        ("m.onnx", "m.json", "m.json exists already; give another name, or add --overwrite"),
        ("m.onnx", None, r'exporting needs no_such_package; run: pip install "crkd\[onnx\]"'),
    ],
)
def test_usage_errors(
    name, existing, message, make_checkpoint, monkeypatch, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(make_checkpoint(spec_of(2, MR), Frame(resize=(32, 32))))
    if existing:
        (tmp_path / existing).write_text("old")
    monkeypatch.setattr(module, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match=message):
        export(checkpoint, tmp_path / name)


@pytest.mark.slow
def test_existing_files_are_replaced_on_request(make_checkpoint, cli: Cli, tmp_path: Path) -> None:
    file = make_checkpoint(spec_of(2, MR), Frame(resize=(32, 32)))
    model = tmp_path / "m.onnx"
    model.write_text("old")
    result = cli("export", file, model, "--overwrite")
    assert result.exit_code == 0, result.stderr
    about: dict[str, Any] = json.loads(model.with_suffix(".json").read_text())
    assert about["sha256"] == sha256(model.read_bytes()).hexdigest()
