"""ISIC 2018 task 1, skin lesions: the challenge's two folders, or `images/` and `masks/`."""

from pathlib import Path

from crkd_cli.data.cases import RawCase, find_folder
from crkd_cli.data.pairing import pair_folders
from crkd_cli.data.raw.download import Remote
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import ChannelInfo, ClassInfo, DatasetSpec
from crkd_cli.errors import CrkdError

IMAGES = "ISIC2018_Task1-2_Training_Input"
MASKS = "ISIC2018_Task1_Training_GroundTruth"
BASE_URL = "https://isic-challenge-data.s3.amazonaws.com/2018"


@SOURCES.register
class Isic2018(Source):
    """Dermoscopic photographs, stored at 320×320; masks are kept at their native size, too."""

    remote = (Remote(f"{BASE_URL}/{IMAGES}.zip"), Remote(f"{BASE_URL}/{MASKS}.zip"))
    where = f"get {IMAGES}.zip and {MASKS}.zip from the ISIC archive's challenge page, 2018, task 1"

    def find(self, root: Path) -> list[RawCase]:
        images = find_folder(root, IMAGES, "images")
        masks = find_folder(root, MASKS, "masks")
        if images is None or masks is None:
            folders = {IMAGES: images, MASKS: masks}
            missing = " and ".join(name for name, folder in folders.items() if folder is None)
            raise CrkdError(
                f"no ISIC 2018 data in {root}: {missing} missing (or images/ and masks/); "
                "give the folder that contains both to --source"
            )
        return pair_folders(root, images, masks, self.files, self.notes)

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="isic2018",
            classes=(
                ClassInfo(name="background", values=(0,)),
                ClassInfo(name="lesion", values=(255,)),
            ),
            channels=(ChannelInfo(modality="RGB", intensity="uint8"),),
            dims=2,
            stored_size=(320, 320),
        )
