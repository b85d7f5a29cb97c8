"""What the benchmark runs on: seeded synthetic stores of the real sets' shapes, or the real prepared stores.

The synthetic cases are the demonstration's hearts and atria, resampled to the shape of an ACDC volume and of an LA scan.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from crkd_cli.data.splits import Split, find_split, split_file, write_split
from crkd_cli.data.store import RECIPE, CaseInfo, DatasetSpec, Index, Store
from crkd_cli.data.synthetic import atrium, short_axis
from crkd_cli.paths import packaged_folder
from crkd_cli.training.loop import Run
from crkd_cli.training.plan import Request, plan
from crkd_cli.training.start import start

Synthetic = tuple[NDArray[Any], NDArray[np.uint8]]
CASES, LABELED, TEST = 6, 2, 1  # of a synthetic store
# Every term on, at full weight from the first step.
ALL_TERMS = "methods.crkd={confidence: %g, ramp: 0}"
CONFIDENCE = {"acdc": 0.8, "la": 0.75}


@dataclass(frozen=True)
class Sizes:
    """How large the work is: the published sizes, and how the growth rows grow."""

    acdc: tuple[int, ...] = (9, 256, 216)  # the median volume, z, y, x
    la: tuple[int, ...] = (148, 141, 88)  # the smallest scan, x, y, z
    image: tuple[int, ...] = (256, 256)
    images: int = 12  # labeled, and as many unlabeled
    patch: tuple[int, ...] = (112, 112, 80)
    stride: tuple[int, ...] = (18, 18, 4)
    patches: int = 2
    few_images: int = 4  # small enough to project every pixel
    small_patch: tuple[int, ...] = (48, 48, 48)
    training_patch: tuple[int, ...] = (64, 64, 48)  # of the network that segments the cases
    training_steps: int = 60
    batches: tuple[int, ...] = (1, 3, 6)
    sides: tuple[int, ...] = (128, 256, 512)
    cubes: tuple[int, ...] = (100, 200, 300, 400)
    slow_cubes: tuple[int, ...] = (100, 200)  # for medpy
    case_cubes: tuple[int, ...] = (100, 200, 400)  # for inference, once
    cases: tuple[int, ...] = (1, 10, 100, 1000)
    seconds: float = 40.0  # that a row may repeat for, after its least number of repeats
    compiler: str = "inductor"  # torch.compile's backend


@dataclass(frozen=True)
class Inputs:
    """Where the stores are and where runs may write."""

    data_root: Path
    scratch: Path
    real: bool
    sizes: Sizes = Sizes()

    @property
    def kind(self) -> str:
        return "real cases" if self.real else "synthetic cases"

    def store(self, name: str) -> Store:
        return Store(self.data_root / "prepared" / name)

    def split(self, name: str) -> Split:
        return find_split(self.store(name), self.labeled(name))

    def run(
        self,
        name: str,
        size: Sequence[int] | None = None,
        batch: int | None = None,
        method: str = "crkd",
        steps: int | None = None,
    ) -> Run:
        """A training run of `name` before its first step, as `crkd train` would start it; sizes as published if not given."""
        two = name == "acdc"
        size = list(size or (self.sizes.image if two else self.sizes.patch))
        batch = batch or (self.sizes.images if two else self.sizes.patches)
        sets = [
            f"data.frame={{{'resize' if two else 'patch'}: {size}}}",
            f"data.labeled_batch_size={batch}",
            f"data.unlabeled_batch_size={batch}",
        ]
        sets += [f"train.steps={steps}"] if steps else []
        sets += ["train.log_every=1", ALL_TERMS % CONFIDENCE[name]]
        out = self.scratch / f"run-{len(list(self.scratch.iterdir()))}"
        request = Request(
            dataset=name,
            labeled=self.labeled(name),
            method=method,
            config=packaged_folder("configs") / f"{name}.yaml",
            split=None,
            out=out,
            sets=sets,
            data_root=self.data_root,
        )
        return start(plan(request))

    def labeled(self, name: str) -> str:
        """The label count of the split."""
        return {"acdc": "3", "la": "4"}[name] if self.real else str(LABELED)


def synthetic(scratch: Path, sizes: Sizes = Sizes()) -> Inputs:
    """Writes both stores under `scratch`."""
    root = scratch / "data"
    spec = DatasetSpec(
        name="acdc",
        source="acdc",
        classes=("background", "right ventricle", "myocardium", "left ventricle"),
        channels=1,
        modality="mr",
        dims=3,
        intensity="minmax",
    )
    write_store(root, spec, sizes.acdc, CASES, short_axis)
    spec = DatasetSpec(
        name="la",
        source="la",
        classes=("background", "left atrium"),
        channels=1,
        modality="mr",
        dims=3,
        intensity="zscore",
        z_last=True,
    )
    write_store(root, spec, sizes.la, CASES, atrium)
    return Inputs(root, scratch, real=False, sizes=sizes)


def write_store(
    root: Path,
    spec: DatasetSpec,
    shape: Sequence[int],
    count: int,
    make: Callable[[int], Synthetic],
) -> None:
    """A prepared store of `count` cases with a split: LABELED labeled, TEST test cases, the rest unlabeled."""
    folder = root / "prepared" / spec.name
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    cases = []
    for number in range(count):
        image, label = resampled(make(number), shape)
        cases.append(case_info(f"case{number:04d}", shape))
        np.save(folder / "images" / f"{cases[-1].id}.npy", normalized(image, spec)[None])
        np.save(folder / "labels" / f"{cases[-1].id}.npy", label)
    write_index(folder, spec, cases)
    ids = tuple(case.id for case in cases)
    split = Split(
        dataset=spec.name,
        name="synthetic",
        train=ids[TEST:],
        labeled=ids[TEST : TEST + LABELED],
        test=ids[:TEST],
    )
    write_split(split, split_file(Store(folder), str(LABELED)))


def write_index(folder: Path, spec: DatasetSpec, cases: Sequence[CaseInfo]) -> None:
    index = Index(recipe=RECIPE, spec=spec, cases=tuple(cases))
    (folder / "index.json").write_text(json.dumps(msgspec.to_builtins(index)), encoding="utf-8")


def case_info(name: str, shape: Sequence[int]) -> CaseInfo:
    return CaseInfo(
        id=name,
        group=name,
        shape=tuple(shape),
        spacing_mm=(1.0,) * len(shape),
        source=f"{name}.h5",
        sha256="0" * 64,
        label_sha256="0" * 64,
        intensity={"min": 0.0, "max": 1.0, "mean": 0.5, "std": 0.3},
    )


def resampled(
    case: Synthetic, shape: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image (linear) and label (nearest) at `shape`."""
    image, label = case
    factors = [new / old for new, old in zip(shape, label.shape, strict=True)]
    return zoom(image.astype(np.float32), factors, order=1), zoom(label, factors, order=0)


def normalized(image: NDArray[np.float32], spec: DatasetSpec) -> NDArray[np.float32]:
    if spec.intensity == "zscore":
        return (image - image.mean()) / image.std()
    return (image - image.min()) / (image.max() - image.min())
