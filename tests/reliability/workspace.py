"""Small prepared datasets with trained and evaluated runs, and the commands that use them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.reliability import commands, originals, scan_files
from tests.reliability.commands import Outcome

CASES = 6
STEPS = 4

Data = int | str  # the dimensions of the dataset of pictures or of volumes; or "ct" or "two"


@dataclass(frozen=True)
class Workspace:
    """A folder with everything that a trial copies and damages."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def split(self) -> Path:
        return self.root / "split.yaml"

    def source(self, data: Data) -> Path:
        return self.root / f"source-{data}"

    def store(self, data: Data = 2) -> Path:
        return self.data / "prepared" / dataset_name(data)

    def run(self, name: str) -> Path:
        return self.root / "runs" / name

    def checkpoint(self, data: Data) -> Path:
        return self.run({2: "a", 3: "volumes"}.get(data, data)) / "last.pth"


def dataset_name(data: Data) -> str:
    return f"own{data}d" if isinstance(data, int) else data


def make(root: Path) -> Workspace:
    """Make the workspace with the commands themselves. Raises RuntimeError if one fails."""
    work = Workspace(root)
    root.mkdir(parents=True)
    for data in (2, 3, "ct", "two"):
        if isinstance(data, int):
            _write_source(work.source(data), data)
        else:
            scan_files.write_dataset(work.source(data), data, CASES)
        _run(root, prepare(work.source(data), work.data, data))
    work.split.write_text(_split(work, 2))
    for data in (3, "ct", "two"):
        (root / f"split-{data}.yaml").write_text(_split(work, data))
    work.config.write_text(CONFIG)
    _run(root, train(work, work.run("a")))
    _run(root, train(work, work.run("b"), method="mean_teacher"))
    for data in (3, "ct", "two"):
        _run(root, train(work, work.checkpoint(data).parent, dataset=data))
    for name in "ab":
        _run(root, evaluate(work.run(name), work.data))
    return work


def _split(work: Workspace, data: Data) -> str:
    cases = json.loads((work.store(data) / "index.json").read_text())["cases"]
    patients = [case["group"] for case in cases]
    split = {
        "dataset": dataset_name(data),
        "name": "made",
        "train": patients[:3],
        "labeled": patients[:2],
        "val": patients[3:4],
        "test": patients[4:],
    }
    return yaml.safe_dump(split)


CONFIG = f"""\
data:
  name: own2d
  frame:
    resize: [16, 16]
  labeled_batch_size: 2
  unlabeled_batch_size: 2
model:
  name: unet
  widths: [4, 4, 4, 4, 4]
train:
  steps: {STEPS}
  lr: 0.01
  eval_every: 2
  log_every: 1
  precision: fp32
  device: cpu
method: supervised
methods: {{}}
"""


def prepare(source: Path, data: Path, dataset: Data = 2) -> list[object]:
    return ["prepare-data", dataset_name(dataset), "--source", source, "--data-root", data]


def train(
    work: Workspace,
    out: Path,
    *options: object,
    method: str = "supervised",
    dataset: Data = 2,
    data: Path | None = None,
    config: Path | None = None,
    split: Path | None = None,
) -> list[object]:
    split = split or (work.split if dataset == 2 else work.root / f"split-{dataset}.yaml")
    words: list[object] = ["train", "--dataset", dataset_name(dataset), "--method", method]
    words += ["--config", config or work.config, "--split", split]
    return [*words, "--data-root", data or work.data, "--out", out, *options]


def evaluate(checkpoint: Path, data: Path, *options: object) -> list[object]:
    return ["evaluate", checkpoint, "--data-root", data, *options]


def predict(images: Path, checkpoint: Path, out: Path) -> list[object]:
    return ["predict", images, "--checkpoint", checkpoint, "--out", out, "--probabilities"]


def _write_source(folder: Path, dims: int) -> None:
    image, label = originals.image(dims), originals.label(dims)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(CASES):
        shifted = [np.roll(array, number, axis=-1) for array in (image, label)]
        for name, array in zip(("images", "labels"), shifted, strict=True):
            _write_array(folder / name / f"case{number}", array)


def _write_array(path: Path, array: np.ndarray) -> None:
    if array.ndim == 2:
        Image.fromarray(array).save(path.with_suffix(".png"))
    else:
        import nibabel

        nifti = nibabel.Nifti1Image(array.T, np.diag([1.5, 1.5, 3.0, 1.0]))
        nibabel.save(nifti, path.with_suffix(".nii.gz"))


def _run(root: Path, arguments: list[object]) -> Outcome:
    outcome = commands.run(arguments, root)
    if outcome.code:
        raise RuntimeError(f"crkd {' '.join(map(str, arguments))}\n{outcome.stderr}")
    return outcome


def copy(source: Path, target: Path) -> Path:
    """Copy a folder of the workspace, so that a trial can damage it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)
    return target
