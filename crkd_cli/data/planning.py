"""Plan how a dataset is stored and trained on, from the fingerprint of its images."""

from collections import Counter
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Literal, NamedTuple

from crkd_cli.data.fingerprint import Fingerprint, ImageHeader
from crkd_cli.data.patch_size import Budget, fit_batch, fit_patch, image_share
from crkd_cli.data.plan import NATIVE, Native, Plan
from crkd_cli.errors import UsageError, pluralize
from crkd_cli.text import format_size

Size = tuple[int, ...]
Spacing = tuple[float, ...]
Network = Literal["2D", "3D"]

MAX_SPACING_RATIO = 1.1  # spacings that differ more are resampled to a common one
# An axis is coarse if its voxels are so many times as long as along the others. Then 3D context
# means little, and the median of its spacings would discard slices of the better images.
ANISOTROPY = 3
MIN_SLICES_3D = 16  # volumes with fewer slices are segmented slice by slice
MAX_RESIZE, RESIZE_STEP = 256, 16  # of 2D images
GIVEN = "as described"
AXES = "zyx"


class PlanWithReasons(NamedTuple):
    """A complete plan, and the reason for each part that applies to the dataset."""

    plan: Plan
    reasons: dict[str, str]

    def lines(self) -> list[str]:
        """Return a line for each of these parts."""
        return [
            f"{key} {_shown(getattr(self.plan, key))} ({reason})"
            for key, reason in self.reasons.items()
        ]


def make_plan(
    fingerprint: Fingerprint, given: Plan, memory: float | None, classes: int
) -> PlanWithReasons:
    """Complete the plan `given` for the images of a dataset.

    Args:
        fingerprint: Has at least one image.
        given: The parts that the description states, which are kept.
        memory: Bytes that training may use; None for the default.
        classes: K, for the memory that a step takes.

    Raises UsageError if a given part does not fit the images, or if the memory does not suffice.
    """
    _check_given(fingerprint, given)
    budget = Budget(classes, memory, color=fingerprint.is_color)
    if fingerprint.dims == 2:
        return _plan_images(fingerprint.images, given, budget)
    return _plan_volumes(fingerprint.images, given, budget)


def _plan_images(images: Sequence[ImageHeader], given: Plan, budget: Budget) -> PlanWithReasons:
    """Plan a dataset of 2D images."""
    resize, reason = given.resize, GIVEN
    if resize is None:
        longest = round(median(max(image.size) for image in images))
        side = min(MAX_RESIZE, -(-longest // RESIZE_STEP) * RESIZE_STEP)
        resize = (side, side)
        reason = f"the median image is {_median_size([image.size for image in images])}"
    batch, batch_reason = fit_batch(resize, given.batch, budget)
    plan = Plan(orientation=NATIVE, spacing=NATIVE, network="2D", resize=resize, batch=batch)
    reasons = {"network": "2D images", "resize": reason, "batch": batch_reason}
    return PlanWithReasons(plan, reasons)


def _plan_volumes(images: Sequence[ImageHeader], given: Plan, budget: Budget) -> PlanWithReasons:
    """Plan a dataset of volumes: the grid that they are stored on, then the patches of it."""
    orientation, orientation_reason = _orientation(images, given)
    turned = [image.turned(orientation) for image in images]
    network, network_reason = _network(turned, given)
    axes = slice(1 if network == "2D" else 0, 3)
    spacing, spacing_reason = _spacing(turned, axes, given)
    stored = [image.resampled(spacing) for image in turned]
    sizes = [image.size[axes] for image in stored]
    patch, patch_reason = given.patch, GIVEN
    if patch is None:
        patch = fit_patch(sizes, _typical_spacing(stored)[axes], given.batch, budget)
        share = f"{image_share(sizes, patch):.0%}".replace("%", " %")
        patch_reason = f"{share} of an average patch is image; the median is {_median_size(sizes)}"
    batch, batch_reason = fit_batch(patch, given.batch, budget)
    plan = Plan(orientation=orientation, spacing=spacing, network=network, patch=patch, batch=batch)
    reasons = {
        "orientation": orientation_reason,
        "spacing": spacing_reason,
        "network": network_reason,
        "patch": patch_reason,
        "batch": batch_reason,
    }
    return PlanWithReasons(plan, reasons)


def _orientation(images: Sequence[ImageHeader], given: Plan) -> tuple[str, str]:
    """Return the orientation of stored volumes: the most common one."""
    counts = Counter(image.orientation for image in images if image.orientation)
    if given.orientation is not None:
        return given.orientation, GIVEN
    if not counts:
        return NATIVE, "the files do not state it"
    (orientation, count), *others = counts.most_common()
    reason = f"as {count} of {pluralize(len(images), 'file')}"
    if others:
        reason += f"; {sum(other for _, other in others)} turned to it"
    if unknown := len(images) - counts.total():
        reason += f"; {unknown} without orientation kept as stored"
    return orientation, reason


def _spacing(
    images: Sequence[ImageHeader], axes: slice, given: Plan
) -> tuple[Spacing | Native, str]:
    """Return the spacing of stored volumes along `axes`: `native` unless their spacings differ.

    If volumes are cut into slices, these keep their distance: new ones would only be repetitions.
    """
    if given.spacing is not None:
        return given.spacing, GIVEN
    known = [image for image in images if image.spacing is not None]
    if not known:
        return NATIVE, "unknown, distances will be in voxels; set it with --spacing"
    spacings = [image.spacing[axes] for image in known if image.spacing is not None]
    by_axis = list(zip(*spacings, strict=True))
    smallest, largest = list(map(min, by_axis)), list(map(max, by_axis))
    ratio = max(high / low for low, high in zip(smallest, largest, strict=True))
    names = ", ".join(AXES[axes])
    if ratio == 1:
        return NATIVE, f"{format_size(smallest)} mm along {names} in all files"
    from_to = f"from {format_size(smallest)} to {format_size(largest)} mm along {names}"
    if ratio <= MAX_SPACING_RATIO:
        return NATIVE, f"nearly equal, {from_to}"
    sizes = [image.size[axes] for image in known]
    target, name = _target_spacing(sizes, spacings, AXES[axes])
    reason = f"{name}; files have {from_to} and are resampled"
    if unknown := len(images) - len(known):
        reason += f"; {unknown} must state theirs"
    return target, reason


def _target_spacing(
    sizes: Sequence[Size], spacings: Sequence[Spacing], names: str
) -> tuple[Spacing, str]:
    """Return the median of the spacings of images of these sizes, and what it is.

    Along the coarse axis of an anisotropic dataset, the 10th percentile takes its place.
    """
    target, size = _medians(spacings), _medians(sizes)
    coarse = target.index(max(target))
    finest_size = min(side for axis, side in enumerate(size) if axis != coarse)
    others = max(step for axis, step in enumerate(target) if axis != coarse)
    reason = "median"
    if target[coarse] >= ANISOTROPY * others and size[coarse] < finest_size:
        steps = [spacing[coarse] for spacing in spacings]
        target[coarse] = max(quantiles(steps, n=10, method="inclusive")[0], others)
        reason = f"median, along {names[coarse]} the 10th percentile"
    return tuple(float(f"{step:.4g}") for step in target), reason


def _network(images: Sequence[ImageHeader], given: Plan) -> tuple[Network, str]:
    """Return 2D if most volumes are better segmented slice by slice, else 3D.

    That is if slices are at least three times as thick as pixels are wide, or fewer than 16.
    """
    if given.network is not None:
        return given.network, GIVEN
    if given.patch is not None:
        dims: Network = "2D" if len(given.patch) == 2 else "3D"
        return dims, f"the described patch has {len(given.patch)} numbers"
    if isinstance(given.spacing, tuple) and len(given.spacing) == 2:
        return "2D", "the described spacing is that of slices"
    images = [image.resampled(given.spacing or NATIVE) for image in images]
    spacings = [image.spacing for image in images if image.spacing is not None]
    thick = sum(step[0] >= ANISOTROPY * max(step[1:]) for step in spacings)
    few = sum(image.size[0] < MIN_SLICES_3D for image in images)
    if 2 * thick > len(images):
        return "2D", "slice by slice: slices are at least 3 times as thick as pixels are wide"
    if 2 * few > len(images):
        return "2D", f"slice by slice: most volumes have fewer than {MIN_SLICES_3D} slices"
    if not spacings:
        return "3D", f"at least {MIN_SLICES_3D} slices; their thickness is unknown"
    return "3D", f"at least {MIN_SLICES_3D} slices, less than 3 times as thick as pixels are wide"


def _typical_spacing(images: Sequence[ImageHeader]) -> Sequence[float]:
    """Return the median of the known spacings per axis; equal ones if none is known."""
    spacings = [image.spacing for image in images if image.spacing is not None]
    return _medians(spacings) or (1.0, 1.0, 1.0)


def _medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the median per axis."""
    return [median(axis) for axis in zip(*rows, strict=True)]


def _median_size(sizes: Sequence[Size]) -> str:
    return format_size(map(round, _medians(sizes)))


def _shown(value: object) -> str:
    return format_size(value) if isinstance(value, tuple) else str(value)


def _check_given(fingerprint: Fingerprint, given: Plan) -> None:
    """Raise UsageError if a described part of the plan does not fit the images."""
    if fingerprint.dims == 2:
        _check_images(given)
    else:
        _check_volumes(fingerprint.images, given)


def _check_images(given: Plan) -> None:
    for key, unchanged in (("orientation", NATIVE), ("spacing", NATIVE), ("network", "2D")):
        if getattr(given, key) not in (None, unchanged):
            raise _unfit(key, f"is {_shown(getattr(given, key))}, but the images are 2D; drop it")
    if given.patch is not None:
        raise _unfit("patch", "is for volumes, but the images are 2D; give resize instead")


def _check_volumes(images: Sequence[ImageHeader], given: Plan) -> None:
    if given.resize is not None:
        raise _unfit("resize", "is for 2D images, but the images are volumes; give patch instead")
    if given.orientation not in (None, NATIVE) and not any(image.orientation for image in images):
        raise _unfit("orientation", f"is {given.orientation}, but no file states its own; drop it")
    if isinstance(given.spacing, tuple) and not any(image.spacing for image in images):
        raise _unfit("spacing", "needs the spacing of the files; state it with --spacing")


def _unfit(key: str, problem: str) -> UsageError:
    return UsageError(f"plan.{key} in the description {problem}")
