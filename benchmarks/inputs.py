"""What the benchmarks run on: synthetic stores in the shapes of ACDC and LA.

The synthetic cases are the hearts and atria of the demonstration, resampled to the shape of an
ACDC volume and of an LA scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import zoom

from crkd_cli.data.foreground import sample_positions
from crkd_cli.data.prepare_case import value_statistics
from crkd_cli.data.splits import Split, split_file, write_split
from crkd_cli.data.store import (
    RECIPE,
    CaseInfo,
    ChannelInfo,
    DatasetSpec,
    Index,
    Store,
    numbered_classes,
    write_index,
)
from crkd_cli.data.synthetic import atrium, short_axis
from crkd_cli.paths import packaged_folder
from crkd_cli.training.loop import Run
from crkd_cli.training.plan import Request, plan
from crkd_cli.training.start import start

CASES, LABELED, TEST = 6, 2, 1
Size = Sequence[int]


@dataclass(frozen=True)
class Sizes:
    """How large the work is; by default as published."""

    acdc: Size = (9, 256, 216)  # the median volume, z, y, x
    la: Size = (148, 141, 88)  # the smallest scan, x, y, z
    image: Size = (256, 256)
    images: int = 12  # labeled, and as many unlabeled
    patch: Size = (112, 112, 80)
    stride: Size = (18, 18, 4)
    patches: int = 2


@dataclass(frozen=True)
class Inputs:
    """The synthetic stores `acdc` and `la` in a folder, where runs may write too."""

    scratch: Path
    sizes: Sizes = Sizes()

    @property
    def data_root(self) -> Path:
        return self.scratch / "data"

    def store(self, name: str) -> Store:
        return Store(self.data_root / "prepared" / name)

    def run(
        self, name: str, *sets: str, method: str = "crkd", size: Size | None = None, batch: int = 0
    ) -> Run:
        """Build a training run as `crkd train` would start it, by default as published."""
        kind = {"acdc": "resize", "la": "patch"}[name]
        size = size or {"acdc": self.sizes.image, "la": self.sizes.patch}[name]
        batch = batch or {"acdc": self.sizes.images, "la": self.sizes.patches}[name]
        batches = [f"data.{part}_batch_size={batch}" for part in ("labeled", "unlabeled")]
        frame = f"data.frame={{{kind}: {list(size)}}}"
        settings = [frame, *batches, "methods.crkd.rampup=0", *sets]  # all terms at full weight
        out = self.scratch / f"run-{len(list(self.scratch.iterdir()))}"
        config = packaged_folder("configs") / f"{name}.yaml"
        options = (name, str(LABELED), method, config, None, out, settings, self.data_root)
        return start(plan(Request(*options)))


def synthetic(scratch: Path, sizes: Sizes = Sizes()) -> Inputs:
    """Write both stores under `scratch`."""
    prepared = scratch / "data" / "prepared"
    organs = numbered_classes(("background", "right ventricle", "myocardium", "left ventricle"))
    acdc = DatasetSpec("acdc", "acdc", organs, (ChannelInfo("MR", "minmax"),), 3)
    atria = numbered_classes(("background", "atrium"))
    la = DatasetSpec("la", "la", atria, (ChannelInfo("MR", "zscore"),), 3, z_last=True)
    _write_store(prepared / "acdc", acdc, sizes.acdc, short_axis)
    _write_store(prepared / "la", la, sizes.la, atrium)
    return Inputs(scratch, sizes)


def _write_store(root: Path, spec: DatasetSpec, shape: Sequence[int], make: Any) -> None:
    """Write a prepared store of CASES cases and its split."""
    for folder in ("images", "labels", "foreground"):
        (root / folder).mkdir(parents=True)
    cases = []
    for number in range(CASES):
        image, label = make(number)
        factors = [new / old for new, old in zip(shape, label.shape, strict=True)]
        image = zoom(image.astype(np.float32), factors, order=1)
        intensity = value_statistics(image[None], spec)
        if spec.channels[0].intensity == "zscore":
            image = (image - image.mean()) / image.std()
        else:
            image = (image - image.min()) / (image.max() - image.min())
        case = f"case{number}"
        np.save(root / "images" / f"{case}.npy", image[None])
        label = zoom(label, factors, order=0)
        np.save(root / "labels" / f"{case}.npy", label)
        positions = sample_positions(label, len(spec.classes), number)
        np.save(root / "foreground" / f"{case}.npy", positions)
        facts = (
            case,
            case,
            tuple(shape),
            (1.0, 1.0, 1.0),
            f"{case}.h5",
            "0" * 64,
            "0" * 64,
            intensity,
        )
        cases.append(CaseInfo(*facts))
    write_index(root, Index(recipe=RECIPE, spec=spec, cases=tuple(cases)))
    ids = tuple(case.id for case in cases)
    train, labeled = ids[TEST:], ids[TEST : TEST + LABELED]
    split = Split(spec.name, "synthetic", train, labeled, test=ids[:TEST])
    write_split(split, split_file(Store(root), str(LABELED)))
