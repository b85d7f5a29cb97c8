"""The published protocol: medpy's scores in voxels, with the published rules for empty masks.

ACDC, LA: a class that is missing in prediction or truth scores 0 in all four metrics, although
0 is the best distance. ISIC 2018, Kvasir-SEG: distances are NaN if a mask is empty, and left out
of the mean.

These scores are comparable to published tables only: they are not a fair measure of a model.
"""

import math

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.splits import Part
from crkd_cli.errors import UsageError
from crkd_cli.metrics.surface import Mask, bounding_box

# The distances if a mask is empty.
_EMPTY_DISTANCE = {"acdc": 0.0, "la": 0.0, "isic2018": math.nan, "kvasir": math.nan}
# Parts that are scored as one, by source; the other sources are scored on test.
POOLED_PARTS: dict[str, tuple[Part, ...]] = {"acdc": ("val", "test")}


def check_published(source: str) -> None:
    """Raise UsageError if no protocol was published for this kind of data."""
    if source not in _EMPTY_DISTANCE:
        known = ", ".join(_EMPTY_DISTANCE)
        raise UsageError(
            f"there is no published protocol for {source} data, only for {known}; "
            "use --protocol strict"
        )


def scores(prediction: Mask, truth: Mask, source: str) -> NDArray[np.float64]:
    """Return Dice, Jaccard, HD95 and ASD [4] of one class as published for `source`, in voxels."""
    predicted, present = bool(prediction.any()), bool(truth.any())
    if not predicted or not present:
        distance = _EMPTY_DISTANCE[source]
        both_empty = predicted == present
        overlap = 1.0 if both_empty and math.isnan(distance) else 0.0
        return np.array([overlap, overlap, distance, distance])
    from medpy.metric import binary

    box = bounding_box(prediction | truth)  # faster than the whole image, with the same results
    prediction, truth = prediction[box], truth[box]
    metrics = (binary.dc, binary.jc, binary.hd95, binary.asd)
    return np.array([metric(prediction, truth) for metric in metrics])
