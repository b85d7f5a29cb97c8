"""phantom: synthetic short-axis stacks of the heart, for demonstrations only."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data import synthetic
from crkd_cli.data.cases import RawCase
from crkd_cli.data.pairing import pair_folders
from crkd_cli.data.raw import nifti
from crkd_cli.data.raw.geometry import Geometry, affine_from
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.errors import CrkdError
from crkd_cli.progress import Advance


@SOURCES.register
class Phantom(Source):
    """80 NIfTI stacks of 6 slices of 64×64: right ventricle, myocardium and left ventricle."""

    generated = True
    cases: ClassVar[int] = 80
    spacing: ClassVar[tuple[float, float, float]] = (10.0, 2.5, 2.5)  # mm, z first
    classes: ClassVar[tuple[str, ...]] = ("background", "RV", "Myo", "LV")
    intensity: ClassVar[Literal["minmax", "zscore"]] = "minmax"

    @staticmethod
    def draw(number: int) -> synthetic.Case:
        """Return the image and the label of case `number`."""
        return synthetic.short_axis(number)

    def generate(self, folder: Path, advance: Advance) -> None:
        for part in ("images", "labels"):
            (folder / part).mkdir()
        for number in range(self.cases):
            name = f"heart{number:03d}.nii"
            image, label = self.draw(number)
            self._write(folder / "images" / name, image)
            self._write(folder / "labels" / name, label)
            advance(1, note=name)

    def find(self, root: Path) -> list[RawCase]:
        if not (root / "images").is_dir() or not (root / "labels").is_dir():
            raise CrkdError(
                f"no phantom in {root}: expected images/ and labels/; "
                "drop --source to generate the dataset"
            )
        return pair_folders(root, root / "images", root / "labels", self.files, self.notes)

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source=type(self).__module__.rpartition(".")[2],
            classes=numbered_classes(self.classes),
            channels=(ChannelInfo(modality="MR", intensity=self.intensity),),
            dims=3,
        )

    def _write(self, path: Path, array: NDArray[Any]) -> None:
        spacing = self.spacing[::-1]
        affine = affine_from(spacing, (0.0, 0.0, 0.0), np.eye(3))
        nifti.write(path, array, Geometry(spacing, (affine,)))
