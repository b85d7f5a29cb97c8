"""The positions of voxels in space, and the distance between those of two files."""

from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
LPS_TO_RAS = (-1.0, -1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Geometry:
    """What a medical file states about the positions of its voxels.

    An affine [positions, axes + 1] maps voxel indices, x first and with a 1 at the end, to a
    position in mm. Positions of volumes are in RAS: to the right, anterior and superior.
    """

    spacing: tuple[float, ...] | None  # mm, x first; None: not stated
    affines: tuple[Affine, ...]  # several if a header contradicts itself; none: not stated
    header: Any = None  # what the writer of the format copies to a mask

    def distance(self, other: "Geometry", size: tuple[int, ...]) -> float:
        """Return the largest distance in mm between a voxel of this file and that of `other`.

        `size` is the number of voxels per axis, x first. If a header contradicts itself, the
        closest affine counts. If a file does not state its orientation, the spacings are compared.
        """
        pairs = [pair for pair in product(self.affines, other.affines) if _comparable(*pair)]
        if not pairs:
            if self.spacing is None or other.spacing is None:
                return 0.0
            pairs = [(_scaling(self.spacing), _scaling(other.spacing))]
        # The distance is a convex function of the index, so it is largest in a corner.
        last = [(0, count - 1) for count in size]
        corners = np.array([(*corner, 1) for corner in product(*last)], dtype=np.float64).T
        distances = (np.linalg.norm((a - b) @ corners, axis=0).max() for a, b in pairs)
        return float(min(distances))

    @property
    def orientation(self) -> str | None:
        """Where the axes x, y and z point to, such as RAS; None if it is not stated, or in 2D."""
        if not self.affines or len(self.affines[0]) != 3:
            return None
        return _axis_codes(self.affines[0])

    def __str__(self) -> str:
        """Describe the geometry for a message: spacing (z first), origin and axes."""
        spacing = "unknown"
        if self.spacing is not None:
            axes = ", ".join("zyx"[-len(self.spacing) :])
            spacing = f"({axes}) {_rounded(self.spacing[::-1])}"
        if not self.affines:
            return f"spacing {spacing}, orientation unknown"
        affine = self.affines[0]
        text = f"spacing {spacing}, origin {_rounded(affine[:, -1])}"
        return f"{text}, axes {self.orientation}" if self.orientation else text


def affine_from(
    spacing: tuple[float, ...], origin: tuple[float, ...], direction: NDArray[np.float64]
) -> Affine:
    """Return the affine of a file in LPS: `direction` has the unit vector of an axis per column."""
    affine = np.column_stack([direction * np.asarray(spacing), origin])
    if len(affine) == 3:
        affine *= np.asarray(LPS_TO_RAS)[:, None]
    return affine


def decompose(affine: Affine) -> tuple[tuple[float, ...], tuple[float, ...], NDArray[np.float64]]:
    """Return the spacing, the origin and the direction that `affine_from` accepts."""
    lps = affine.copy()
    if len(lps) == 3:
        lps *= np.asarray(LPS_TO_RAS)[:, None]
    axes = lps[:, :-1]
    spacing = np.linalg.norm(axes, axis=0)
    return tuple(spacing.tolist()), tuple(lps[:, -1].tolist()), axes / spacing


def _comparable(a: Affine, b: Affine) -> bool:
    return a.shape == b.shape


def _scaling(spacing: tuple[float, ...]) -> Affine:
    return np.column_stack([np.diag(spacing), np.zeros(len(spacing))])


def _rounded(values: Any) -> str:
    # Adding 0 removes the sign of -0.
    return str(tuple(round(float(value), 3) + 0.0 for value in values))


def _axis_codes(affine: Affine) -> str:
    """Return where the axes x, y, … point to, such as RAS."""
    columns = affine[:, :-1].T
    directions = np.abs(columns) / np.linalg.norm(columns, axis=1, keepdims=True)

    def fit(axes: tuple[int, ...]) -> float:
        return sum(float(direction[axis]) for direction, axis in zip(directions, axes, strict=True))

    # Every axis gets another pair of letters, also where two of them point to the same corner.
    axes = max(permutations(range(3), len(columns)), key=fit)
    letters = (
        ("RL", "AP", "SI")[axis][int(column[axis] < 0)]
        for column, axis in zip(columns, axes, strict=True)
    )
    return "".join(letters)
