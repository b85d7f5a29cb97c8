"""Refuse images of another modality than the model was trained on: CT for MR, or the reverse."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.intensities import looks_like_ct
from crkd_cli.data.raw import dicom
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.inference.cases import Case
from crkd_cli.text import channel_title

ADVICE = "give another --checkpoint, or predict it all the same with --other-modality"


def check_tags(case: Case, spec: DatasetSpec) -> None:
    """Raise CrkdError if DICOM files of `case` are MR although the model reads CT, or the reverse.

    Other modalities are not refused: CT and MR are the ones that have a normalization of their own.
    """
    for image, channel in zip(case.images if case.series else (), spec.channels, strict=False):
        stated = dicom.read_tags(image.path).modality
        if {stated, channel.modality} == {"MR", "CT"}:
            raise CrkdError(
                f"{case.label} is {stated}, but the model was trained on {channel.modality}; "
                f"{ADVICE}"
            )


def check_values(case: Case, array: NDArray[Any], spec: DatasetSpec) -> None:
    """Raise CrkdError if values [C, *S] of volumes without DICOM tags are of another modality."""
    if spec.dims == 2 or case.series:
        return
    for values, channel in zip(array, spec.channels, strict=True):
        difference = _difference(values, channel)
        if difference:
            name = f" ({channel_title(channel.name)})" if len(array) > 1 else ""
            raise CrkdError(
                f"{case.label}{name} {difference}, but the model was trained on "
                f"{channel.modality}; {ADVICE}"
            )


def _difference(values: NDArray[Any], channel: ChannelInfo) -> str:
    """Say what values [*S] look like, if they cannot be of the channel's modality; else "".

    CT without negative values is refused only if the labeled objects of the training cases, in
    Hounsfield units, have some: then the image has other units, or is MR.
    """
    if channel.modality == "MR" and looks_like_ct(values):
        return "looks like CT (Hounsfield units)"
    if channel.window is not None and channel.window.low < 0 <= values.min():
        lowest, highest = np.min(values), np.max(values)
        return f"has values from {lowest:.6g} to {highest:.6g}, unlike Hounsfield units"
    return ""
