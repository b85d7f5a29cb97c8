"""Scores of a model on cases of a prepared store."""

from collections.abc import Sequence

import numpy as np

from crkd_cli.data.case import Store
from crkd_cli.engine.infer import Inferer
from crkd_cli.metrics.overlap import confusion, dice


def validate(inferer: Inferer, store: Store, cases: Sequence[str]) -> dict[str, float]:
    """Dice over `cases`, for training: "dice/NAME" of every foreground class, "dice" the mean of the classes."""
    classes = store.spec.classes
    scores = []
    for case in cases:
        truth = store.native_label(case)
        labels = inferer(store.image(case), truth.shape)
        scores.append(dice(confusion(labels, truth, len(classes)))[1:])
    means = np.mean(scores, axis=0)
    by_class = {f"dice/{name}": float(mean) for name, mean in zip(classes[1:], means, strict=True)}
    return {"dice": float(means.mean()), **by_class}
