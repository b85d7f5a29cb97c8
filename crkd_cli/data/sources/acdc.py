"""ACDC (MICCAI 2017): the challenge's NIfTI folders, or the h5 volumes of SSL4MIS.

Both layouts contain the same cases. Their ids are patientNNN_frame01 for end-diastole and
patientNNN_frame02 for end-systole, whatever the numbers of these frames in the raw files.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from crkd_cli.data.cases import RawCase, labeled_case
from crkd_cli.data.raw.limits import check_regular
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import Source
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.errors import CrkdError

H5_NAME = re.compile(r"(patient\d{3})_frame\d\d\.h5")


@SOURCES.register
class Acdc(Source):
    """Short-axis stacks [1, z, y, x], scaled to 0..1. The h5 files do not state their spacing."""

    archives = ("ACDC*.zip", "acdc*.zip", "ACDC*.tar*", "acdc*.tar*")
    where = (
        "ACDC needs a registration: get it from the challenge's site (search for "
        "'ACDC challenge database', Human Heart Project), or get the h5 volumes that SSL4MIS "
        "distributes"
    )

    def find(self, root: Path) -> list[RawCase]:
        infos = sorted(root.rglob("Info.cfg"))
        self.files.used |= dict.fromkeys(infos, "Info.cfg file")
        cases = _nifti_cases(infos) or _h5_cases(root)
        if not cases:
            raise CrkdError(
                f"no ACDC data in {root}: expected patientNNN folders with Info.cfg and NIfTI "
                "files (the challenge's) or patientNNN_frameMM.h5 volumes (SSL4MIS); "
                "give the folder that contains them to --source"
            )
        return cases

    def spec(self, name: str, cases: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="acdc",
            classes=numbered_classes(
                ("background", "right ventricle", "myocardium", "left ventricle")
            ),
            channels=(ChannelInfo(modality="MR", intensity="minmax"),),
            dims=3,
        )


def _nifti_cases(infos: Sequence[Path]) -> list[RawCase]:
    cases = []
    for info in infos:
        folder = info.parent
        patient = folder.name
        for number, frame in enumerate(_frames(info), start=1):
            image = _nifti_file(folder, f"{patient}_frame{frame:02d}")
            label = _nifti_file(folder, f"{patient}_frame{frame:02d}_gt")
            case_id = f"{patient}_frame{number:02d}"
            label_file = label if label.exists() else None
            cases.append(labeled_case(case_id, patient, image, label_file))
    return sorted(cases, key=lambda case: case.id)


def _h5_cases(root: Path) -> list[RawCase]:
    cases = [
        labeled_case(path.stem, match[1], path, path)
        for path in root.rglob("*.h5")
        if (match := H5_NAME.fullmatch(path.name))
    ]
    return sorted(cases, key=lambda case: (case.id, case.image))


def _frames(info: Path) -> tuple[int, int]:
    """Return the frame numbers of end-diastole and end-systole."""
    check_regular(info)
    text = info.read_text(encoding="utf-8", errors="replace")
    frames = dict(re.findall(r"^(ED|ES):\s*(\d+)", text, flags=re.MULTILINE))
    if len(frames) != 2:
        raise CrkdError(f"{info} does not state ED and ES; copy the file again")
    return int(frames["ED"]), int(frames["ES"])


def _nifti_file(folder: Path, name: str) -> Path:
    """Return NAME.nii if a download tool has decompressed the file, else NAME.nii.gz."""
    decompressed = folder / f"{name}.nii"
    return decompressed if decompressed.is_file() else folder / f"{name}.nii.gz"
