"""The published protocol: medpy's scores in voxels, with the published rules for empty masks.

ACDC, LA: a class that is missing in prediction or truth scores 0 in all four, which flatters both distances.
ISIC 2018, Kvasir-SEG: distances are NaN where a mask is empty, and left out of the mean.
Its numbers stand beside printed tables and nowhere else: they are no fair measure of a model.
"""

import math

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.splits import Part
from crkd_cli.errors import UsageError
from crkd_cli.metrics.surface import Mask, bounding_box

_MISSING = {
    "acdc": 0.0,
    "la": 0.0,
    "isic2018": math.nan,
    "kvasir": math.nan,
}  # distance where a mask is empty
TOGETHER: dict[str, tuple[Part, ...]] = {
    "acdc": ("val", "test")
}  # scored as one; the others' scores are of test


def check(source: str) -> None:
    """Raises UsageError if nothing was published for data of this kind."""
    if source not in _MISSING:
        known = ", ".join(_MISSING)
        raise UsageError(
            f"there is no published protocol for {source} data, only for {known}; use --protocol strict"
        )


def scores(prediction: Mask, truth: Mask, source: str) -> NDArray[np.float64]:
    """Dice, Jaccard, HD95 and ASD [4] of one class, in voxels, as published for data from `source`."""
    missing = _MISSING[source]
    found, wanted = bool(prediction.any()), bool(truth.any())
    if not found or not wanted:
        empty_agree = math.isnan(missing) and found == wanted
        overlap = 1.0 if empty_agree else 0.0
        return np.array([overlap, overlap, missing, missing])
    from medpy.metric import binary

    box = bounding_box(prediction | truth)  # the same numbers as on the whole image, sooner
    prediction, truth = prediction[box], truth[box]
    return np.array(
        [score(prediction, truth) for score in (binary.dc, binary.jc, binary.hd95, binary.asd)]
    )
