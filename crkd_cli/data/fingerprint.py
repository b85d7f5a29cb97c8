"""What the headers of a dataset's image files state, which the plan is made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crkd_cli.data.cases import RawCase
from crkd_cli.data.plan import AXIS_OF_LETTER, MAX_SPACING_MM, MIN_SPACING_MM
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
        if self.orientation is None or orientation in (self.orientation, "native"):
            return self
        order = axis_order(self.orientation, orientation)
        size = tuple(self.size[axis] for axis in order)
        spacing = self.spacing and tuple(self.spacing[axis] for axis in order)
        return ImageHeader(size, spacing, orientation)


@dataclass(frozen=True)
class Fingerprint:
    """The images of a dataset that could be measured, all with the same number of axes."""

    dims: int
    images: tuple[ImageHeader, ...]


def axis_order(orientation: str, target: str) -> tuple[int, ...]:
    """Return which of the stored axes z, y, x becomes each of the axes z, y, x of `target`."""
    axes = [AXIS_OF_LETTER[letter] for letter in reversed(orientation)]
    return tuple(axes.index(AXIS_OF_LETTER[letter]) for letter in reversed(target))


def measure(cases: Sequence[RawCase], spec: DatasetSpec) -> Fingerprint:
    """Read the headers of all images.

    Those that cannot be read, or have another number of axes, are left out: they are reported when
    the cases are read.
    """
    headers = (_read_header(case, spec) for case in cases)
    images = [header for header in headers if header is not None]
    return Fingerprint(spec.dims, tuple(images))


def _read_header(case: RawCase, spec: DatasetSpec) -> ImageHeader | None:
    try:
        layout = formats.probe(case.image)
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
