"""Kvasir-SEG, polyps: the publisher's `images/` and `masks/`. The masks are JPEG: 0 and 255 with noise around them."""

from pathlib import Path

from crkd_cli.data.raw.download import Remote
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import RawCase, Source, folder, pairs
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError


@SOURCES.register
class Kvasir(Source):
    """Endoscopic photographs, stored at 320×320; masks are kept at their native size too."""

    remote = (Remote("https://datasets.simula.no/downloads/kvasir-seg.zip"),)
    where = "get kvasir-seg.zip from Simula's page of the data set Kvasir-SEG"

    def find(self, root: Path) -> list[RawCase]:
        images, masks = folder(root, "images"), folder(root, "masks")
        if images is None or masks is None:
            raise CrkdError(
                f"no Kvasir-SEG data in {root}: expected images/ and masks/; give their folder to --source"
            )
        return pairs(images, masks, (), self.notes)

    def spec(self, name: str, raws: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="kvasir",
            classes=("background", "polyp"),
            channels=3,
            modality="rgb",
            dims=2,
            intensity="uint8",
            stored_size=(320, 320),
        )
