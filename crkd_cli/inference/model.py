"""Predict images that are arrays in memory.

Shapes: *S spatial axes, [z, y, x] or [y, x]; C channels, K classes.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.grid import StoredImage
from crkd_cli.data.raw.formats import Volume
from crkd_cli.data.sources import SOURCES
from crkd_cli.errors import UsageError
from crkd_cli.inference.ensemble import load_ensemble, stored_rules
from crkd_cli.inference.inferer import Inferer, build_inferer
from crkd_cli.inference.postprocessing import postprocess
from crkd_cli.runtime.class_rule import ClassRule


class Model:
    """A trained model, or an ensemble whose probabilities are averaged.

    Attributes:
        classes: The names of the K classes, the background first.
        values: Their values in the label files that the model was trained on.
        channels: The names of the channels.
    """

    def __init__(self, inferer: Inferer, rules: Sequence[ClassRule] = ()) -> None:
        self._inferer, self._rules = inferer, rules
        self._spec = inferer.spec
        self._source = SOURCES[self._spec.source]()
        self.classes: tuple[str, ...] = self._spec.class_names
        self.values: tuple[int, ...] = tuple(info.value for info in self._spec.classes)
        self.channels: tuple[str, ...] = self._spec.channel_names

    def predict(
        self, image: NDArray[Any], spacing: Sequence[float] | None = None
    ) -> NDArray[np.uint8 | np.int16]:
        """Return the class number of every pixel or voxel, [*S].

        Args:
            image: [*S] or [C, *S], with values as in the files that the model was trained on, and
                volumes in the orientation of the plan. A photograph may be [y, x, 3].
            spacing: In mm along *S. Needed if volumes are resampled.

        Raises UsageError if the image does not fit the model, CrkdError if its values cannot be
        normalized.
        """
        stored = self._store(image, spacing)
        labels = self._undo(stored, self._inferer(stored.array, stored.native_size))
        return postprocess(labels, self._rules) if self._rules else labels

    def probabilities(
        self, image: NDArray[Any], spacing: Sequence[float] | None = None
    ) -> NDArray[np.float32]:
        """Return the probability of every class, [K, *S]; arguments as of `predict`."""
        stored = self._store(image, spacing)
        return self._undo(stored, self._inferer.probabilities(stored.array, stored.native_size))

    def _store(self, image: NDArray[Any], spacing: Sequence[float] | None) -> StoredImage:
        """Return the image as the network sees it."""
        spec, array = self._spec, np.asarray(image)
        if spec.is_color and array.ndim == 3 and array.shape[-1] == 3 != array.shape[0]:
            array = np.moveaxis(array, -1, 0)
        if array.ndim == spec.dims:
            array = array[None]
        if array.ndim != spec.dims + 1 or len(array) != spec.channel_count or 0 in array.shape:
            axes = "z, y, x" if spec.dims == 3 else "y, x"
            raise UsageError(
                f"the image has shape {list(np.shape(image))}; the model needs "
                f"[{spec.channel_count} channels, {axes}]"
            )
        if spec.plan and isinstance(spec.plan.spacing, tuple) and spacing is None:
            raise UsageError("the model resamples volumes; give the spacing of this one in mm")
        if spacing is not None and len(spacing) != spec.dims:
            raise UsageError(f"spacing has {len(spacing)} values; the image has {spec.dims} axes")
        axes_of_file = range(1, array.ndim)
        steps = None if spacing is None else tuple(map(float, spacing))
        if spec.z_last:
            array = array.transpose(0, *reversed(axes_of_file))
            steps = steps and steps[::-1]
        volume = Volume(np.ascontiguousarray(array), steps, array.shape[1:], z_last=spec.z_last)
        return self._source.finish(volume, Path("image"), spec)

    def _undo(self, stored: StoredImage, result: NDArray[Any]) -> NDArray[Any]:
        """Return a prediction [..., *S] in the axes of the image."""
        result = stored.turn.undo(result)
        if self._spec.z_last:
            first = range(result.ndim - 3)
            result = result.transpose(*first, *reversed(range(result.ndim - 3, result.ndim)))
        return np.ascontiguousarray(result)


def load_model(
    checkpoint: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    device: str | None = None,
    tta: bool = False,
    raw: bool = False,
) -> Model:
    """Load a checkpoint, the result of a run folder, or an ensemble of several.

    Args:
        checkpoint: One or more paths.
        device: None or auto: the first GPU, else the CPU.
        tta: Average the predictions over flips, as `crkd predict --tta` does.
        raw: Leave the post-processing in the checkpoint off.
    """
    given = [checkpoint] if isinstance(checkpoint, str | PathLike) else checkpoint
    members = load_ensemble([Path(path) for path in given])
    rules = () if raw else stored_rules(members)
    return Model(build_inferer(members, device, lambda line: None, tta=tta), rules)
