"""Export a trained network to ONNX, with a description of its input and output.

Legend: B batch, C channels, K classes, *S spatial axes of the network.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from crkd_cli import __version__
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.paths import atomic_write
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import Checkpoint

FORMAT = 1  # of the description
OPSET = 18  # of 2022; onnxruntime 1.14 and later, TensorRT 8.6 and later
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `onnx`
TOLERANCE = 1e-3  # of the logits in float32
CHECKED_BATCH = 3  # another one than that of the export
INPUT, OUTPUT = "image", "logits"


class Exported(NamedTuple):
    """The files of an export, and how far their logits are from those of the checkpoint."""

    model: Path
    description: Path
    difference: float


def export(checkpoint: Checkpoint, model: Path, *, overwrite: bool = False) -> Exported:
    """Write the predictor as `model`, and its description beside it with the ending .json.

    The network maps images [B, C, *S] in float32 to logits [B, K, *S]. The file is run once in
    onnxruntime and compared before it gets its name.

    Raises UsageError if the name is not that of a new .onnx file or the extra `onnx` is missing,
    CrkdError if the logits differ.
    """
    description = model.with_suffix(".json")
    _check(model, description, overwrite=overwrite)
    network = load_predictor(checkpoint, torch.device("cpu"))
    shape = (checkpoint.spec.channel_count, *checkpoint.config.data.frame.size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECKED_BATCH, *shape, generator=generator)
    with atomic_write(model) as temporary:
        _write(network, images[:2], temporary)
        difference = _difference(network, images, temporary)
        if not difference <= TOLERANCE:
            raise CrkdError(
                f"{model} was not written: its logits differ by {difference:.2g} from those of "
                f"{checkpoint.path}; update onnxscript and torch"
            )
        digest = sha256(temporary.read_bytes()).hexdigest()
    with atomic_write(description) as temporary:
        content = {"model": model.name, "sha256": digest, **describe(checkpoint)}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    return Exported(model, description, difference)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a program needs to know to predict with the network, as JSON."""
    spec, frame = checkpoint.spec, checkpoint.config.data.frame
    return {
        "format": FORMAT,
        "crkd": __version__,
        "checkpoint": {
            "dataset": spec.name,
            "method": checkpoint.config.method,
            "step": checkpoint.step,
            "trained_with": checkpoint.code_version,
        },
        "input": {"name": INPUT, "shape": ["batch", spec.channel_count, *frame.size]},
        "output": {"name": OUTPUT, "shape": ["batch", len(spec.classes), *frame.size]},
        "axes": ["batch", "channel or class", *spec.axes[-frame.dims :]],
        "channels": [_describe_channel(channel, spec) for channel in spec.channels],
        "grid": _describe_grid(spec),
        "frame": msgspec.to_builtins(frame),
        "classes": [
            {"number": number, "name": info.name, "value": info.value}
            for number, info in enumerate(spec.classes)
        ],
    }


def _describe_channel(channel: ChannelInfo, spec: DatasetSpec) -> dict[str, Any]:
    normalization: dict[str, Any] = {"kind": channel.intensity}
    if channel.window is not None:
        normalization |= msgspec.to_builtins(channel.window)
    return {
        "name": channel.name,
        "modality": channel.modality,
        "network_channels": 3 if spec.is_color else 1,
        "normalization": normalization,
    }


def _describe_grid(spec: DatasetSpec) -> dict[str, Any]:
    """Describe what images are brought to before they are resized or cut into patches."""
    return {
        "source": spec.source,
        "axes": spec.dims,
        "orientation": spec.plan and spec.plan.orientation,
        "spacing_mm": spec.plan and spec.plan.spacing,
        "size": spec.stored_size,
    }


def _check(model: Path, description: Path, *, overwrite: bool) -> None:
    """Raise UsageError unless `model` can be written."""
    if model.suffix != ".onnx":
        raise UsageError(f"{model} does not end in .onnx; name the file to write, as in model.onnx")
    for file in (model, description):
        if file.exists() and not overwrite:
            raise UsageError(f"{file} exists already; give another name, or add --overwrite")
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UsageError(f'exporting needs {" and ".join(missing)}; run: pip install "crkd[onnx]"')


def _write(network: nn.Module, images: Tensor, file: Path) -> None:
    """Write the network, which accepts any number of images."""
    batch = torch.export.Dim("batch", min=1)
    with _quietly():
        program = torch.onnx.export(
            network,
            (images,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        assert program is not None
        program.save(file, external_data=False)


def _difference(network: nn.Module, images: Tensor, file: Path) -> float:
    """Return the largest difference of the logits for `images` in onnxruntime and in PyTorch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (actual,) = session.run([OUTPUT], {INPUT: images.numpy()})
    with torch.inference_mode():
        expected = network(images).numpy()
    return float(np.abs(actual - expected).max())


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress what the exporter says about packages and changes that do not matter here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
