"""Notes on what is missing in a dataset that can be prepared."""

from collections import Counter
from collections.abc import Iterable, Sequence

from crkd_cli.data.prepare_case import CaseResult
from crkd_cli.data.splits import official_splits, preview
from crkd_cli.errors import pluralize


def note_unlabeled(results: Sequence[CaseResult]) -> Iterable[str]:
    """Note how many cases have no label."""
    unlabeled = sum(not result.labeled for result in results)
    if unlabeled:
        yield f"cases without a label, used as unlabeled: {unlabeled} of {len(results)}"


def note_turned_labels(results: Sequence[CaseResult]) -> Iterable[str]:
    """Note how many labels have other axes than their images."""
    turned = sum(result.turned_labels for result in results)
    if turned:
        yield f"labels with other axes than their images, turned to them: {turned}"


def note_missing_groups(name: str, results: Sequence[CaseResult]) -> Iterable[str]:
    """Note which cases of the official split of a public dataset are missing."""
    official = official_splits(name)
    if official is None:
        return
    present = {result.raw.group for result in results}
    missing = [group for group in official.groups if group not in present]
    if missing:
        yield (
            f"{len(missing)} of the official split's {len(official.groups)} ids are missing: "
            f"{preview(missing)}"
        )


def note_unknown_spacing(results: Sequence[CaseResult]) -> Iterable[str]:
    """Note that no volume has a spacing."""
    images = [result.image for result in results if result.image is not None]
    dims = Counter(len(image.shape) for image in images)
    if 3 in dims and all(image.spacing_mm is None for image in images):
        yield (
            "the files do not state their spacing: distances will be in voxels; "
            "set it with --spacing"
        )


def note_resampled_channels(results: Sequence[CaseResult]) -> Iterable[str]:
    """Note how many cases have channels with different grids."""
    resampled = [result.raw.id for result in results if result.is_resampled]
    if resampled:
        yield (
            f"{len(resampled)} of {pluralize(len(results), 'case')} have channels on different "
            "grids, which were resampled to that of the first channel by linear interpolation: "
            f"{preview(resampled)}"
        )
