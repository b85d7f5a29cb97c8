"""Kvasir-SEG, polyps: the publisher's `images/` and `masks/`.

The masks are JPEG files, so that their values are only near 0 and 255.
"""

from pathlib import Path

from crkd_cli.data.cases import RawCase, find_folder
from crkd_cli.data.pairing import pair_folders
from crkd_cli.data.raw.download import Remote
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import ChannelInfo, ClassInfo, DatasetSpec
from crkd_cli.errors import CrkdError


@SOURCES.register
class Kvasir(Source):
    """Endoscopic photographs, stored at 320×320; masks are kept at their native size, too."""

    remote = (Remote("https://datasets.simula.no/downloads/kvasir-seg.zip"),)
    where = "get kvasir-seg.zip from Simula's page of the dataset Kvasir-SEG"

    def find(self, root: Path) -> list[RawCase]:
        images = find_folder(root, "images")
        masks = find_folder(root, "masks")
        if images is None or masks is None:
            raise CrkdError(
                f"no Kvasir-SEG data in {root}: expected images/ and masks/; "
                "give the folder that contains both to --source"
            )
        return pair_folders(root, images, masks, self.files, self.notes)

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="kvasir",
            classes=(
                ClassInfo(name="background", values=(0,)),
                ClassInfo(name="polyp", values=(255,)),
            ),
            channels=(ChannelInfo(modality="RGB", intensity="uint8"),),
            dims=2,
            stored_size=(320, 320),
        )
