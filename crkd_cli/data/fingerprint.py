"""What the headers of a dataset's image files state, which the plan is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crkd_cli.data.cases import RawCase
from crkd_cli.data.grid import Turn, resampled_size, target_spacing
from crkd_cli.data.plan import MAX_SPACING_MM, MIN_SPACING_MM, NATIVE, Native
from crkd_cli.data.raw import formats
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError


class ImageHeader(NamedTuple):
    """The voxels of an image file. Axes are ordered z, y, x, or y, x in 2D."""

    size: tuple[int, ...]  # *S
    spacing: tuple[float, ...] | None = None  # mm; None: unknown
    orientation: str | None = None  # of the axes x, y, z, such as RAS; None: not stated, or 2D

    def turned(self, orientation: str) -> "ImageHeader":
        """Return the voxels with their axes turned to `orientation`, or unchanged for `native`."""
        if self.orientation is None or orientation in (self.orientation, NATIVE):
            return self
        turn = Turn.between(self.orientation, orientation, len(self.size))
        spacing = self.spacing and turn.reorder(self.spacing)
        return ImageHeader(turn.reorder(self.size), spacing, orientation)

    def resampled(self, spacing: tuple[float, ...] | Native) -> "ImageHeader":
        """Return the voxels after resampling to `spacing`, or unchanged for `native`."""
        if self.spacing is None or isinstance(spacing, str):
            return self
        target = target_spacing(self.spacing, spacing)
        size = resampled_size(self.size, self.spacing, target)
        return ImageHeader(size, target, self.orientation)


@dataclass(frozen=True)
class Fingerprint:
    """The images of a dataset that could be measured, all with the same number of axes."""

    dims: int
    images: tuple[ImageHeader, ...]
    is_color: bool = False


def measure(cases: Sequence[RawCase], spec: DatasetSpec) -> Fingerprint:
    """Read the headers of all images.

    Those that cannot be read, or have another number of axes, are left out: they are reported when
    the cases are read.
    """
    headers = (_read_header(case, spec) for case in cases)
    images = [header for header in headers if header is not None]
    return Fingerprint(spec.dims, tuple(images), spec.is_color)


def _read_header(case: RawCase, spec: DatasetSpec) -> ImageHeader | None:
    try:
        layout = formats.probe(case.image, spec.channel_names, case.images[0].slices)
    except CrkdError:
        return None
    if layout.dims != spec.dims:
        return None
    spacing, orientation = None, None
    if layout.geometry is not None:
        spacing = layout.geometry.spacing and layout.geometry.spacing[::-1]
        orientation = layout.geometry.orientation if layout.dims == 3 else None
    spacing = spacing or spec.description.spacing
    if spacing and not all(MIN_SPACING_MM <= step <= MAX_SPACING_MM for step in spacing):
        spacing = None
    return ImageHeader(layout.size, spacing, orientation)
