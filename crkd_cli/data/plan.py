"""The plan of a dataset: the grid that its images are stored on, and what is trained on them."""

from typing import Annotated, Literal

import msgspec

from crkd_cli.config import BatchSize, Frame, Size, Strict
from crkd_cli.errors import pluralize

MIN_SPACING_MM, MAX_SPACING_MM = 1e-6, 1e4
Millimeters = Annotated[float, msgspec.Meta(ge=MIN_SPACING_MM, le=MAX_SPACING_MM)]
Native = Literal["native"]  # as in every file
NATIVE: Native = "native"
# Right and left, anterior and posterior, superior and inferior.
AXIS_OF_LETTER = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


class Plan(Strict, frozen=True):
    """How images are stored and trained on.

    None: inferred from the images in a description, and not applicable in a prepared dataset.
    """

    # Where the axes x, y and z of stored volumes point to, such as RAS, or native.
    orientation: str | None = None
    # In mm per axis of stored volumes: z, y, x; or y, x, if slices keep their distance.
    spacing: tuple[Millimeters, ...] | Native | None = None
    network: Literal["2D", "3D"] | None = None  # 2D: volumes are cut into slices along z
    patch: tuple[Size, ...] | None = None  # of volumes or their slices: the network's input
    resize: tuple[Size, ...] | None = None  # of 2D images: they are resized to it and stored so
    # Labeled images, patches or slices per step, and as many unlabeled ones.
    batch: BatchSize | None = None

    def __post_init__(self) -> None:
        if self.orientation not in (None, NATIVE):
            axes = [AXIS_OF_LETTER.get(letter, -1) for letter in self.orientation]
            if sorted(axes) != [0, 1, 2]:
                raise ValueError(
                    f"orientation is {self.orientation!r}; give one letter of R/L, A/P and "
                    "S/I for each of the axes x, y and z, such as RAS, or native"
                )
        if self.patch is not None and self.resize is not None:
            raise ValueError("give either patch (volumes) or resize (2D images)")
        for key, size in (("patch", self.patch), ("resize", self.resize)):
            if size is not None:
                _check_size(key, size)
        self._check_dims()

    def _check_dims(self) -> None:
        """Raise ValueError unless network, patch and spacing have the same number of axes."""
        network = self.network
        if self.patch is not None:
            count = len(self.patch)
            if network not in (None, f"{count}D"):
                raise ValueError(f"patch has {count} numbers, but network is {network}")
            network = "2D" if count == 2 else "3D"
        if isinstance(self.spacing, tuple):
            count = len(self.spacing)
            if count not in (2, 3):
                raise ValueError(f"spacing has {pluralize(count, 'number')}; give z, y, x, or y, x")
            if count == 2 and network == "3D":
                raise ValueError("spacing has 2 numbers, but the network is 3D; give z, y, x")

    @property
    def frame(self) -> Frame:
        """How a case becomes the network's input. Only of complete plans."""
        return Frame(resize=self.resize, patch=self.patch)


def _check_size(key: str, size: tuple[int, ...]) -> None:
    try:
        Frame(patch=size)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
