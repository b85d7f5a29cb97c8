"""LA (left atrium challenge 2018): the h5 files of UA-MT or SSL4MIS, or the challenge's NRRD scans.

Case ids are those of the challenge. Volumes are stored as [1, x, y, z], with zero mean and unit
variance over the raw scan.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.cases import ImageFile, RawCase, labeled_case, seed_of
from crkd_cli.data.raw.formats import Volume, suffix
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import ChannelInfo, ClassInfo, DatasetSpec
from crkd_cli.errors import CrkdError

H5_NAME = re.compile(r"[A-Z0-9]{20}\.h5")
H5_SPACING_MM = (0.625, 0.625, 0.625)  # stated by the challenge's paper, but not by the h5 files
PATCH_SIZE = 112  # in plane, of the networks that the published crop was made for


@SOURCES.register
class La(Source):
    """Late gadolinium-enhanced MR of the left atrium, two classes."""

    archives = (
        "2018LA*.zip",
        "2018LA*.tar*",
        "2018_UTAH*.zip",
        "LA.zip",
        "la.zip",
        "Training Set.zip",
    )
    where = (
        "LA needs a registration: get it from the site of the Atrial Segmentation Challenge 2018 "
        "(search for 'atrial segmentation challenge 2018 data'), or get the h5 files that UA-MT "
        "and SSL4MIS distribute"
    )

    def find(self, root: Path) -> list[RawCase]:
        scans = sorted(root.rglob("lgemri.nrrd"))
        if scans:
            if self.published_crop:
                self.notes.append(
                    "NRRD scans cropped in plane around the label (--published-crop), "
                    "test scans too"
                )
            return _nrrd_cases(scans)
        cases = _h5_cases(root)
        if not cases:
            raise CrkdError(
                f"no LA data in {root}: expected ID/mri_norm2.h5 (UA-MT), ID.h5 (SSL4MIS) or "
                "ID/lgemri.nrrd with ID/laendo.nrrd (the challenge's); "
                "give the folder that contains them to --source"
            )
        if self.published_crop:
            raise CrkdError(f"{root} contains h5 files, already cropped; drop --published-crop")
        self.notes.append(
            "h5 files: cropped in plane around the label as published, test and unlabeled scans too"
        )
        return cases

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="la",
            classes=(
                ClassInfo(name="background", values=(0,)),
                ClassInfo(name="left atrium", values=(255, 1)),  # of the challenge, and in h5
            ),
            channels=(ChannelInfo(modality="MR", intensity="zscore"),),
            dims=3,
            z_last=True,
        )

    def normalize(self, array: NDArray[Any], path: Path, spec: DatasetSpec) -> NDArray[Any]:
        # The h5 volumes were normalized over the raw scan before they were cropped.
        if suffix(path) == ".h5":
            return array.astype(np.float32, copy=False)
        return super().normalize(array, path, spec)

    def open_image(self, images: Sequence[ImageFile], spec: DatasetSpec) -> Volume:
        volume = super().open_image(images, spec)
        if volume.spacing_mm is None:
            return replace(volume, spacing_mm=H5_SPACING_MM)
        return volume

    def crop(self, case: str, foreground: NDArray[np.bool_] | None) -> tuple[slice, ...]:
        """Crop in plane to the label's bounding box plus a margin, at least to the patch size.

        This is how the h5 files that published results use were made: the box is enlarged to the
        patch size, and by 10 to 19 voxels on each side. Here the case id seeds these margins.
        """
        if foreground is None or not foreground.any():
            raise CrkdError(f"{case} has no label to crop around; drop --published-crop")
        rng = np.random.default_rng(seed_of(case))
        box = []
        for axis in (0, 1):
            other_axes = tuple({0, 1, 2} - {axis})
            inside = np.flatnonzero(foreground.any(axis=other_axes))
            first, last = int(inside[0]), int(inside[-1])
            padding = max(PATCH_SIZE - (last - first), 0) // 2
            before, after = rng.integers(10, 20, size=2).tolist()
            start = max(first - before - padding, 0)
            stop = min(last + after + padding, foreground.shape[axis])
            box.append(slice(start, stop))
        return (*box, slice(None))


def _nrrd_cases(scans: list[Path]) -> list[RawCase]:
    cases = []
    for scan in scans:
        name = scan.parent.name
        label = scan.with_name("laendo.nrrd")
        cases.append(labeled_case(name, name, scan, label if label.exists() else None))
    return sorted(cases, key=lambda case: case.id)


def _h5_cases(root: Path) -> list[RawCase]:
    files = {path.parent.name: path for path in sorted(root.rglob("mri_norm2.h5"))}
    for path in sorted(root.rglob("*.h5")):
        if H5_NAME.fullmatch(path.name):
            files[path.stem] = path
    return [labeled_case(name, name, path, path) for name, path in sorted(files.items())]
