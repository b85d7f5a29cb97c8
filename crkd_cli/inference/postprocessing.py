"""Post-processing of label maps: small components are removed, and holes filled.

Legend: K classes with the background, *S spatial axes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from crkd_cli.runtime.class_rule import ClassRule

COUNTED_AT_ONCE = 2**24  # voxels

Mask = NDArray[np.bool_]


def postprocess(labels: NDArray[Any], rules: Sequence[ClassRule]) -> NDArray[Any]:
    """Apply the rules of the foreground classes 1, 2, … to the class numbers `labels` [*S].

    Removed voxels become background. Only background is filled, so that classes do not depend on
    each other, except that the first of two classes keeps a hole of both.
    """
    result = np.zeros_like(labels)
    # For speed with many classes, each is searched in its bounding box.
    boxes = ndimage.find_objects(labels, len(rules))
    for k, (rule, box) in enumerate(zip(rules, boxes, strict=True), start=1):
        if box is not None:
            part = result[box]
            mask = process_mask(labels[box] == k, labels[box] == 0, rule)
            part[mask & (part == 0)] = k
    return result


def process_mask(mask: Mask, background: Mask, rule: ClassRule) -> Mask:
    """Apply `rule` to the `mask` [*S] of a class in its bounding box."""
    if rule.smallest_component:
        mask = _without_small_components(mask, rule.smallest_component)
    if rule.fill_holes:
        mask = mask | (_holes(mask) & background)
    return mask


def _without_small_components(mask: Mask, share: float) -> Mask:
    """Keep the face-connected components that have at least `share` of the largest one's voxels.

    A share of 1 keeps a single component.
    """
    components, count = ndimage.label(mask)
    sizes = _sizes(components, count)
    sizes[0] = 0  # the background
    if share == 1.0:
        return np.asarray(components == sizes.argmax())
    kept = sizes >= share * sizes.max()
    kept[0] = False
    result: Mask = kept[components]
    return result


def _holes(mask: Mask) -> Mask:
    """Return the voxels outside `mask` from which no path along faces leaves its bounding box."""
    components, count = ndimage.label(~mask)
    enclosed = np.ones(count + 1, np.bool_)
    enclosed[0] = False  # the mask
    for axis in range(mask.ndim):
        for end in (0, -1):
            enclosed[np.unique(components.take(end, axis))] = False
    holes: Mask = enclosed[components]
    return holes


def _sizes(components: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Count the voxels of the components 0 to `count`."""
    sizes = np.zeros(count + 1, np.int64)
    # Part by part, because bincount needs 8 bytes a voxel.
    for part in np.array_split(components.ravel(), 1 + components.size // COUNTED_AT_ONCE):
        sizes += np.bincount(part, minlength=count + 1)
    return sizes
