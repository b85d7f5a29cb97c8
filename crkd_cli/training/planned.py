"""Train on a dataset as its plan says, which `prepare-data` made for a user's own data."""

from pathlib import Path
from typing import Any

from crkd_cli.config import FOREGROUND, DataConfig, Frame
from crkd_cli.data.plan import Plan
from crkd_cli.text import format_size


def follow(tree: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the configuration `tree` with images and batches as planned."""
    frame, foreground = {"patch": plan.patch}, FOREGROUND
    if plan.resize is not None:  # the network sees 2D images completely
        frame, foreground = {"resize": plan.resize}, 0.0
    data = {
        **tree["data"],
        "frame": frame,
        "labeled_batch_size": plan.batch,
        "unlabeled_batch_size": plan.batch,
        "foreground": foreground,
    }
    return {**tree, "data": data}


def describe(data: DataConfig, plan: Plan, store: Path) -> str:
    """Say whether the settings `data` of a run follow the plan of the dataset in `store`."""
    settings = _settings(data.frame, data.labeled_batch_size, data.unlabeled_batch_size)
    planned = _settings(plan.frame, plan.batch, plan.batch)
    if settings == planned:
        return f"following the plan of {store}: {settings}"
    return f"not following the plan of {store} ({planned}): {settings}"


def warn_of_enlarging(data: DataConfig, plan: Plan, store: Path) -> str | None:
    """Return a warning if the 2D images in `store` are smaller than the run needs them."""
    stored, size = plan.resize or (), data.frame.resize or ()
    # A run with another number of axes is refused later.
    if all(side <= other for side, other in zip(size, stored, strict=False)):
        return None
    return (
        f"the images in {store} are stored with {format_size(stored)} pixels, and enlarged to "
        f"{format_size(size)}; to store larger ones, add plan: {{resize: {list(size)}}} to "
        "dataset.yaml in the folder of the raw files, and rerun prepare-data"
    )


def _settings(frame: Frame, labeled: int | None, unlabeled: int | None) -> str:
    name = "resize" if frame.resize else "patch"
    return f"{name} {format_size(frame.size)}, batch {labeled} + {unlabeled}"
