"""Predict a NIfTI volume with a model that `crkd export` wrote, without crkd or PyTorch.

    python predict_onnx.py model.onnx scan.nii.gz mask.nii.gz

For a model of your own volumes, with one channel, that were not resampled.
"""

import json
import sys
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
from nibabel import orientations


def main(model: str, scan: str, mask: str) -> None:
    """Write the mask of a scan."""
    about = json.loads(Path(model).with_suffix(".json").read_text())
    if about["grid"]["spacing_mm"] != "native":
        sys.exit("the volumes of this model are resampled, which is not part of this example")
    file = nibabel.load(scan)
    there = back = np.array([[0, 1], [1, 1], [2, 1]])
    if about["grid"]["orientation"] != "native":
        wanted = orientations.axcodes2ornt(about["grid"]["orientation"])
        found = orientations.io_orientation(file.affine)
        there = orientations.ornt_transform(found, wanted)
        back = orientations.ornt_transform(wanted, found)
    volume = orientations.apply_orientation(np.asanyarray(file.dataobj), there).T  # z, y, x
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    probabilities = predict(session, normalize(volume, about["channels"][0]), about)
    values = np.array([info["value"] for info in about["classes"]], np.uint8)
    label = orientations.apply_orientation(values[probabilities.argmax(0)].T, back)
    nibabel.save(nibabel.Nifti1Image(label, file.affine), mask)


def normalize(volume: np.ndarray, channel: dict) -> np.ndarray:
    """Normalize values as in training."""
    volume, rule = volume.astype(np.float32), channel["normalization"]
    if rule["kind"] == "window":  # CT
        return (volume.clip(rule["low"], rule["high"]) - rule["mean"]) / rule["std"]
    if rule["kind"] == "zscore":
        return (volume - volume.mean(dtype=np.float64)) / volume.std(dtype=np.float64)
    return (volume - volume.min()) / (volume.max() - volume.min())


def predict(session: onnxruntime.InferenceSession, volume: np.ndarray, about: dict) -> np.ndarray:
    """Return the probabilities [K, z, y, x], summed over a sliding window with Gaussian weights."""
    patch = about["frame"]["patch"]
    sides = [1, *patch] if len(patch) == 2 else patch  # a 2D network sees one slice
    shape = volume.shape
    missing = [max(side - length, 0) for side, length in zip(sides, shape, strict=True)]
    pads = [(total // 2, total - total // 2) for total in missing]
    volume = np.pad(volume, pads).astype(np.float32)
    weight = np.ones(())
    for side in sides:
        x = np.arange(side) - (side - 1) / 2
        weight = weight[..., None] * np.exp(-0.5 * (x / (side / 8)) ** 2)
    weight = weight.clip(1e-3)
    total = np.zeros((len(about["classes"]), *volume.shape))
    for corner in product(*map(window_starts, volume.shape, sides)):
        window = tuple(
            slice(first, first + side) for first, side in zip(corner, sides, strict=True)
        )
        (logits,) = session.run(None, {"image": volume[window].reshape(1, 1, *patch)})
        probabilities = np.exp(logits[0] - logits[0].max(0))
        probabilities /= probabilities.sum(0)
        total[(slice(None), *window)] += weight * probabilities.reshape(-1, *sides)
    inside = [slice(pad[0], pad[0] + length) for pad, length in zip(pads, shape, strict=True)]
    return total[(slice(None), *inside)]


def window_starts(length: int, side: int) -> list[int]:
    """Return where windows begin: after every half of one, and the last at the end."""
    return [*range(0, length - side, max(side // 2, 1)), length - side]


if __name__ == "__main__":
    main(*sys.argv[1:])
