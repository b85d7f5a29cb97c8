"""Find classes that name a side, such as left and right kidney, which flips exchange."""

import re

from crkd_cli.config import DataConfig
from crkd_cli.data.plan import AXIS_OF_LETTER, NATIVE, Plan
from crkd_cli.data.splits import preview
from crkd_cli.data.store import DatasetSpec

# The letter of an orientation, such as RAS, that stands for each side.
LETTER_OF_SIDE = {
    "left": "L",
    "right": "R",
    "anterior": "A",
    "posterior": "P",
    "superior": "S",
    "upper": "S",
    "inferior": "I",
    "lower": "I",
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # also in LeftKidney and LEFT_KIDNEY
_EXAMPLE = {
    2: "[0], if this is axis 1 (0: up and down, 1: left and right)",
    3: "[0,1], if this is axis 2 (0: z, 1: y, 2: x)",
}


def warn_of_sides(data: DataConfig, spec: DatasetSpec) -> str | None:
    """Return a warning if flips exchange classes of a user's own dataset, and how to avoid it.

    There is none if data.mirror is set, or for public datasets, which are trained as published.
    """
    if spec.plan is None or data.mirror is not None:
        return None
    dims = data.frame.dims
    body_axes = {name: _body_axes(name) for name in spec.class_names[1:]}
    shown = _shown_axes(spec.plan, dims)
    if shown is None:  # the files do not state it
        named = [name for name, axes in body_axes.items() if axes]
        cause = "flips may exchange"
        remedy = f"keep their axis out of data.mirror: --set data.mirror={_EXAMPLE[dims]}"
    else:
        # The published augmentation flips volumes in the plane of the slices only.
        first = 1 if dims == 3 and data.augment == "published" else 0
        named = [name for name, axes in body_axes.items() if axes & {*shown[first:]}]
        stated = set().union(*body_axes.values())
        flipped = [str(axis) for axis in range(first, dims) if shown[axis] in stated]
        kept = [str(axis) for axis in range(dims) if shown[axis] not in stated]
        cause = f"flips along axis {' and '.join(flipped)} exchange"
        remedy = f"train with --set data.mirror=[{','.join(kept)}]"
    if not named:
        return None
    return (
        f"class names state sides ({preview(named)}), which {cause}; unless something else tells "
        f"these classes apart, {remedy}"
    )


def _body_axes(name: str) -> set[int]:
    """Return the axes of the body on which the sides that `name` states lie."""
    words = (word.lower() for word in _WORD.findall(name))
    return {AXIS_OF_LETTER[LETTER_OF_SIDE[word]] for word in words if word in LETTER_OF_SIDE}


def _shown_axes(plan: Plan, dims: int) -> list[int] | None:
    """Return which axis of the body each axis of the network's images follows; None if unknown."""
    if plan.orientation in (None, NATIVE):
        return None
    letters = reversed(plan.orientation)  # of z, y and x; slices have y and x
    return [AXIS_OF_LETTER[letter] for letter in letters][-dims:]
