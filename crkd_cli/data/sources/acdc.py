"""ACDC (MICCAI 2017): the challenge's own NIfTI folders, or the h5 volumes of SSL4MIS. Both give the same cases.

Case ids are patientNNN_frame01 and patientNNN_frame02: end of diastole and of systole, in the order of `Info.cfg`.
"""

import re
from pathlib import Path

from crkd_cli.data.sources import SOURCES
from crkd_cli.data.sources.base import RawCase, Source
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError


@SOURCES.register
class Acdc(Source):
    """Short-axis stacks [1, z, y, x], scaled to 0..1 over the volume. h5 files do not say their spacing."""

    archives = ("ACDC*.zip", "acdc*.zip", "ACDC*.tar*", "acdc*.tar*")
    where = (
        "ACDC needs a registration: get it from the challenge's site (search for 'ACDC challenge database', "
        "Human Heart Project), or take the h5 volumes that SSL4MIS distributes"
    )

    def find(self, root: Path) -> list[RawCase]:
        return self._nifti(root) or self._h5(root)

    def spec(self, name: str, raws: list[RawCase]) -> DatasetSpec:
        return DatasetSpec(
            name=name,
            source="acdc",
            classes=("background", "right ventricle", "myocardium", "left ventricle"),
            channels=1,
            modality="mr",
            dims=3,
            intensity="minmax",
        )

    def _nifti(self, root: Path) -> list[RawCase]:
        raws = []
        for info in sorted(root.rglob("Info.cfg")):
            patient = info.parent.name
            for number, frame in enumerate(_frames(info), start=1):
                image = _nifti_file(info.parent, f"{patient}_frame{frame:02d}")
                label = _nifti_file(info.parent, f"{patient}_frame{frame:02d}_gt")
                raws.append(
                    RawCase(
                        f"{patient}_frame{number:02d}",
                        patient,
                        image,
                        label if label.exists() else None,
                    )
                )
        return sorted(raws, key=lambda raw: raw.id)

    def _h5(self, root: Path) -> list[RawCase]:
        name = re.compile(r"(patient\d{3})_frame\d\d\.h5")
        found = {
            path: match[1] for path in root.rglob("*.h5") if (match := name.fullmatch(path.name))
        }
        if not found:
            raise CrkdError(
                f"no ACDC data in {root}: expected patientNNN folders with Info.cfg and NIfTI files (the challenge's) "
                "or patientNNN_frameMM.h5 volumes (SSL4MIS); point --source at the folder that holds them"
            )
        return [
            RawCase(path.stem, found[path], path, path)
            for path in sorted(found, key=lambda path: (path.stem, path))
        ]


def _frames(info: Path) -> tuple[int, int]:
    """The frame numbers of the end of diastole and of systole."""
    text = info.read_text(encoding="utf-8", errors="replace")
    found = dict(re.findall(r"^(ED|ES):\s*(\d+)", text, flags=re.MULTILINE))
    if len(found) != 2:
        raise CrkdError(f"{info} does not state ED and ES; copy it again")
    return int(found["ED"]), int(found["ES"])


def _nifti_file(folder: Path, name: str) -> Path:
    """NAME.nii.gz, or NAME.nii where a download tool unpacked it."""
    plain = folder / f"{name}.nii"
    return plain if plain.is_file() else folder / f"{name}.nii.gz"
