"""LA (left atrium challenge 2018): the h5 files of UA-MT or SSL4MIS, or the challenge's raw NRRD scans.

Case ids are the challenge's own. Volumes are stored [1, x, y, z], with zero mean and unit variance over the raw scan.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.formats import Volume, suffix
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import RawCase, Source
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError

H5_SPACING_MM = (0.625, 0.625, 0.625)  # the h5 files do not say it; the challenge's paper does


@SOURCES.register
class La(Source):
    """Late-enhancement MR of the left atrium, two classes."""

    archives = (
        "2018LA*.zip",
        "2018LA*.tar*",
        "2018_UTAH*.zip",
        "LA.zip",
        "la.zip",
        "Training Set.zip",
    )
    where = (
        "LA needs a registration: get it from the Atrial Segmentation Challenge 2018's site (search for 'atrial "
        "segmentation challenge 2018 data'), or take the h5 files that UA-MT and SSL4MIS distribute"
    )

    def find(self, root: Path) -> list[RawCase]:
        if scans := sorted(root.rglob("lgemri.nrrd")):
            return self._nrrd(scans)
        h5 = {path.parent.name: path for path in sorted(root.rglob("mri_norm2.h5"))}
        name = re.compile(r"[A-Z0-9]{20}\.h5")
        h5 |= {path.stem: path for path in sorted(root.rglob("*.h5")) if name.fullmatch(path.name)}
        if not h5:
            raise CrkdError(
                f"no LA data in {root}: expected ID/mri_norm2.h5 (UA-MT), ID.h5 (SSL4MIS) or ID/lgemri.nrrd with "
                "ID/laendo.nrrd (the challenge's); point --source at the folder that holds them"
            )
        if self.published_crop:
            raise CrkdError(
                f"{root} holds h5 files, which are cropped already; leave out --published-crop"
            )
        self.notes.append(
            "h5 files: cropped in plane around the label as published, test and unlabeled scans too"
        )
        return [RawCase(case, case, path, path) for case, path in sorted(h5.items())]

    def spec(self, name: str, raws: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="la",
            classes=("background", "left atrium"),
            channels=1,
            modality="mr",
            dims=3,
            intensity="zscore",
            z_last=True,
        )

    def normalize(self, array: NDArray[Any], path: Path, spec: DatasetSpec) -> NDArray[Any]:
        if (
            suffix(path) == ".h5"
        ):  # normalized over the raw scan, then cropped: once more would change it
            return array.astype(np.float32, copy=False)
        return super().normalize(array, path, spec)

    def open_image(self, path: Path, spec: DatasetSpec) -> Volume:
        volume = super().open_image(path, spec)
        return (
            volume if volume.spacing_mm is not None else replace(volume, spacing_mm=H5_SPACING_MM)
        )

    def crop(self, case: str, label: NDArray[np.uint8] | None) -> tuple[slice, ...]:
        """In plane: the label's box, a margin of 10 to 19 voxels, and half of what the box lacks to 112 voxels.

        As the h5 files that published results use were made; here the margin is drawn from the case's id.
        """
        if label is None or not label.any():
            raise CrkdError(f"{case} has no label to crop by; leave out --published-crop")
        rng = np.random.default_rng(
            int.from_bytes(hashlib.sha256(case.encode()).digest()[:8], "big")
        )
        box = []
        for axis in (0, 1):
            inside = np.flatnonzero(label.any(axis=tuple({0, 1, 2} - {axis})))
            first, last = int(inside[0]), int(inside[-1])
            lack = max(112 - (last - first), 0) // 2
            before, after = rng.integers(10, 20, size=2).tolist()
            box.append(
                slice(max(first - before - lack, 0), min(last + after + lack, label.shape[axis]))
            )
        return (*box, slice(None))

    def _nrrd(self, scans: list[Path]) -> list[RawCase]:
        if self.published_crop:
            self.notes.append(
                "NRRD scans cropped in plane around the label (--published-crop), test scans too"
            )
        raws = []
        for scan in scans:
            label = scan.with_name("laendo.nrrd")
            raws.append(
                RawCase(scan.parent.name, scan.parent.name, scan, label if label.exists() else None)
            )
        return sorted(raws, key=lambda raw: raw.id)
