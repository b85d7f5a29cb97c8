"""Predict whole cases: by resizing or with a sliding window, in batches on the device.

Legend: B batch, C channels, K classes, *S spatial axes; D planes along the first axis of a
volume, n of them at a time, H × W the size of a plane. K' is K, and one more if the disagreement
of models and flips is measured.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, product
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crkd_cli.augment.spatial import resize_image
from crkd_cli.config import Frame
from crkd_cli.data.store import DatasetSpec, label_dtype
from crkd_cli.errors import CrkdError, suppress_out_of_memory
from crkd_cli.inference.accumulate import PlaneSums, needed_depth, window_geometry
from crkd_cli.inference.certainty import CertaintySums, Inference, sum_of_squares
from crkd_cli.inference.flips import common_flipped_axes, subsets
from crkd_cli.inference.resizing import most_probable, resize, resize_to_nearest
from crkd_cli.models.fusion import fuse_for_inference
from crkd_cli.progress import Notify
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import Checkpoint
from crkd_cli.runtime.device import (
    channels_last,
    describe,
    keep_freed_memory,
    pick_device,
    pick_precision,
    to_channels_last,
)
from crkd_cli.transfer import to_device, to_unit_range
from crkd_cli.windows import padding, windows

T = TypeVar("T")
Protocol = Literal["strict", "paper"]
MANY_CLASSES = 32  # from here on, probabilities take more memory than features


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Inferer:
    """Runs a model over whole cases, or several whose probabilities are averaged.

    With `frame.resize`, the image (or every slice) is resized to the frame, and its probabilities
    back to the original size. Protocol strict: as in training, and linearly on the way back;
    paper: nearest neighbor both times.

    With `frame.patch`, the probabilities of a sliding window are averaged. Protocol strict: a
    stride of half a patch and Gaussian weights; paper: the published stride and equal weights.

    A volume is split into slices along its first axis for a 2D frame.

    With `mirrored_axes`, the probabilities of a window, or of a resized image, are averaged over
    its flips along every subset of these axes (test-time mirroring, as in nnU-Net). Models and
    flips are run one after another, so that their number does not matter for memory.

    Of the sums over windows, only the planes that later windows touch are kept, and resized
    probabilities exist for a few planes at a time: memory does not grow with the number of planes.

    If the device runs out of memory, the batch of windows is halved; if one window at a time is
    still too much, cases and sums are kept on the host. `notify` is called once. Raises CrkdError
    if even that is not enough.

    Args:
        models: One, or an ensemble. Their weights are copied here and in `refresh`, and their mode
            is left alone.
        frame: Size and stride of the networks' input.
        spec: The dataset that the models were trained on.
        device: Where the networks run.
        precision: torch.float32, or another type for autocast.
        protocol: strict or paper.
        window_batch: Windows or slices per batch. None: chosen for the device.
        mirrored_axes: The axes of the frame along which inputs are flipped.
        certainty: Measure how certain predictions are, see `Inference.certainty`.
        notify: Called with messages for the user.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        frame: Frame,
        spec: DatasetSpec,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        protocol: Protocol = "strict",
        window_batch: int | None = None,
        mirrored_axes: Sequence[int] = (),
        notify: Notify = _to_stderr,
        *,
        certainty: bool = False,
    ) -> None:
        # Enough to fill a GPU (16 windows of LA), or what fits in a CPU's cache (one window of LA,
        # 8 slices of ACDC).
        voxels = 2**24 if device.type == "cuda" else 2**19
        voxels = voxels * MANY_CLASSES // max(MANY_CLASSES, len(spec.classes))
        self.models = models
        self.frame = frame
        self.spec = spec
        self.device = device
        self.precision = precision
        self.protocol = protocol
        self._flips = subsets([axis + 2 for axis in mirrored_axes])  # axes of [B, C, *frame]
        self._passes = len(models) * len(self._flips)
        self._certainty = certainty
        self._disagreement = certainty and self._passes > 1
        self.window_batch = window_batch or max(1, voxels // math.prod(frame.size))
        self.notify = notify
        self._case_device = device  # where a case and the sums of its windows are kept
        self._warned = False
        self.refresh()

    def refresh(self) -> None:
        """Copy the models' current weights."""
        networks = [fuse_for_inference(model, self.precision) for model in self.models]
        self.networks = [to_channels_last(network, self.frame.dims) for network in networks]

    def __call__(self, image: NDArray[Any], size: Sequence[int] | None = None) -> NDArray[Any]:
        """Return class numbers [*S] of `image` [C, *S].

        Args:
            image: As stored: uint8 0-255, or normalized floats.
            size: Size of the labels. None: that of the image.
        """
        return self.infer(image, size).labels

    def probabilities(
        self, image: NDArray[Any], size: Sequence[int] | None = None
    ) -> NDArray[np.floating]:
        """Return class probabilities [K, *S] of `image` [C, *S]; arguments as for labels."""
        probabilities = self.infer(image, size, np.float32).probabilities
        assert probabilities is not None
        return probabilities

    def sum_entropy(self, image: NDArray[Any]) -> tuple[float, int]:
        """Return the summed entropy of `image` [C, *S], and how many voxels are foreground.

        A voxel whose classes are all equally probable has the entropy 1.
        """

        def infer(volume: NDArray[Any], size: Sequence[int]) -> tuple[float, int]:
            entropy, foreground = 0.0, 0
            for _, by_class in self._infer_planes(volume, size):
                p = torch.stack(list(by_class))
                entropy += torch.special.entr(p).sum(dtype=torch.float64).item() / math.log(len(p))
                foreground += int(most_probable(p, len(p))[0].count_nonzero())
            return entropy, foreground

        return self._infer_case(infer, image, None)

    def infer(
        self,
        image: NDArray[Any],
        size: Sequence[int] | None = None,
        dtype: type[np.floating] | None = None,
    ) -> Inference:
        """Return labels, and probabilities as `dtype` unless it is None, of `image` [C, *S].

        Other arguments as for labels.
        """

        def infer(volume: NDArray[Any], size: Sequence[int]) -> Inference:
            return self._infer_volume(volume, size, dtype)

        result = self._infer_case(infer, image, size)
        return result.first_slice() if image.ndim == 3 else result

    def _infer_case(
        self,
        infer: Callable[[NDArray[Any], Sequence[int]], T],
        image: NDArray[Any],
        size: Sequence[int] | None,
    ) -> T:
        """Return `infer(volume, size)` with `image` [C, *S] as a volume [C, D, H, W].

        A 2D image is a volume of one slice. If memory runs out, starts again with less.
        """
        axes = image.ndim - 1
        if image.shape[0] != self.spec.channel_count or axes not in (self.frame.dims, 3):
            needed = "2 axes, or 3" if self.frame.dims == 2 else "3 axes"
            raise CrkdError(
                f"the image has {image.shape[0]} channel(s) and {axes} axes; the model needs "
                f"{self.spec.channel_count} channel(s) and {needed}"
            )
        size = tuple(size or image.shape[1:])
        if axes == 2:
            image, size = image[:, None], (1, *size)
        while True:
            # Reduce after the clause: inside it, the traceback would keep the tensors alive.
            with suppress_out_of_memory(), torch.inference_mode():
                return infer(image, size)
            self._reduce_memory(image.shape[-axes:])

    def _infer_volume(
        self, volume: NDArray[Any], size: Sequence[int], dtype: type[np.floating] | None
    ) -> Inference:
        """Infer a volume [C, D, H, W], whose labels get `size`."""
        classes = len(self.spec.classes)
        labels = np.empty(size, label_dtype(classes))
        probabilities = None if dtype is None else np.empty((classes, *size), dtype)
        sums = CertaintySums(self._passes) if self._certainty else None
        for planes, by_class in self._infer_planes(volume, size):
            if probabilities is not None:
                by_class = _copied(by_class, probabilities[:, planes])
            background = next(by_class)
            foreground = islice(by_class, classes - 1)
            numbers, highest = most_probable(chain([background], foreground), classes)
            labels[planes] = numbers.cpu().numpy()
            if sums is not None:
                sums.add(numbers, highest, background, next(by_class, None))
        certainty = None if sums is None else sums.certainty()
        return Inference(labels, probabilities, certainty)

    def _reduce_memory(self, shape: Sequence[int]) -> None:
        if self.window_batch > 1:
            self.window_batch //= 2
        elif self._case_device.type != "cpu":
            self._case_device = torch.device("cpu")
        elif self.device.type == "cpu":
            size = "×".join(map(str, shape))
            raise CrkdError(
                f"not enough memory for the probabilities of {len(self.spec.classes)} classes in "
                f"an image of {size}; cut it into smaller ones"
            )
        else:
            size = "×".join(map(str, self.frame.size))
            raise CrkdError(
                f"{self.device} has not enough memory for one window of {size}; use --device cpu"
            )
        if not self._warned:
            self.notify(
                f"{self.device} is short of memory: continuing with smaller, slower batches"
            )
            self._warned = True

    def _infer_planes(
        self, volume: NDArray[Any], size: Sequence[int]
    ) -> Iterator[tuple[slice, Iterator[Tensor]]]:
        """Yield the probabilities of a volume [C, D, H, W], resized to `size`: see `resize`.

        After those of the K classes comes the disagreement, if it is measured.
        """
        depth = volume.shape[1]
        if self.frame.patch is not None:
            blocks = self._infer_windows(volume)
        elif self.frame.dims == 2:
            blocks = self._infer_resized_slices(volume)
        else:
            blocks, depth = self._infer_resized_volume(volume), self.frame.size[0]
        return resize(blocks, depth, size, nearest=self.protocol == "paper")

    def _infer_resized_slices(self, volume: NDArray[Any]) -> Iterator[Tensor]:
        """Yield probabilities [n, K', *frame] of the slices of `volume` [C, D, H, W]."""
        for start in range(0, volume.shape[1], self.window_batch):
            slices = np.moveaxis(volume[:, start : start + self.window_batch], 1, 0)
            yield self._predict(self._resize_to_frame(slices))

    def _infer_resized_volume(self, volume: NDArray[Any]) -> Iterator[Tensor]:
        """Yield the probabilities [D, K', H, W] of `volume` [C, D, H, W] at the frame's size."""
        (probabilities,) = self._predict(self._resize_to_frame(volume[None]))
        yield probabilities.transpose(0, 1)

    def _resize_to_frame(self, images: NDArray[Any]) -> Tensor:
        """Return `images` [B, C, *S] as network input [B, C, *frame]."""
        x = to_unit_range(self._load(images))
        if self.protocol == "paper":
            return resize_to_nearest(x, self.frame.size)
        return resize_image(x, self.frame.size, nearest=self.spec.resized_to_nearest)

    def _infer_windows(self, volume: NDArray[Any]) -> Iterator[Tensor]:
        """Yield the weighted mean [n, K', H, W] of the windows over `volume` [C, D, H, W]."""
        x = self._load(volume)
        shape = tuple(x.shape[1:])
        patch, stride, weight = window_geometry(self.frame, published=self.protocol == "paper")
        # Where the volume is smaller than the patch, a window is padded to the size of the patch.
        pads = padding(shape, patch)
        inside = [slice(None), slice(None)]
        for (before, _), side in zip(pads, shape, strict=True):
            inside.append(slice(before, before + side))
        weight = weight[tuple(inside[2:])].to(self._case_device)
        grid = windows(shape, [min(sides) for sides in zip(patch, shape, strict=True)], stride)
        starts = range(0, len(grid), self.window_batch)
        batches = [grid[start : start + self.window_batch] for start in starts]

        depth, classes = needed_depth(batches), len(self.spec.classes)
        sums = PlaneSums(classes, shape, depth, self._case_device, extra=int(self._disagreement))
        for batch in batches:
            yield from sums.take(batch[0][0].start)
            crops = torch.stack([x[(slice(None), *window)] for window in batch])
            if any(map(any, pads)):
                crops = F.pad(crops, [amount for pair in reversed(pads) for amount in pair])
            probabilities = self._infer_crops(crops)[tuple(inside)]
            for window, values in zip(batch, probabilities, strict=True):
                sums.add(window, values, weight)
        yield from sums.take(shape[0])

    def _infer_crops(self, crops: Tensor) -> Tensor:
        """Return probabilities [B, K', *window] of `crops` [B, C, *window]."""
        x = to_unit_range(crops)
        if self.frame.dims == 2:
            return self._predict(x.squeeze(2)).unsqueeze(2)
        return self._predict(x)

    def _load(self, array: NDArray[Any]) -> Tensor:
        """Return `array` on the device of cases; only a read-only one, a memory map, is copied."""
        return to_device(
            torch.from_numpy(np.require(array, requirements=("C", "W"))), self._case_device
        )

    def _predict(self, x: Tensor) -> Tensor:
        """Return float32 probabilities [B, K', *frame] of `x` [B, C, *frame].

        They are the mean over networks and flips, and on the device of cases.
        """
        x = to_device(x, self.device)
        first, *others = product(self.networks, self._flips)
        total = self._softmax(x, *first)
        squares = sum_of_squares(total) if self._disagreement else None
        for network, axes in others:
            probabilities = self._softmax(x, network, axes)
            if squares is not None:
                squares += sum_of_squares(probabilities)
            total += probabilities
        mean = total.div_(self._passes)
        if squares is not None:  # the variance over passes, summed over classes
            variance = squares.div_(self._passes).sub_(sum_of_squares(mean)).clamp_(min=0)
            mean = torch.cat([mean, variance], dim=1)
        return mean.to(self._case_device)

    def _softmax(self, x: Tensor, network: nn.Module, axes: tuple[int, ...]) -> Tensor:
        """Return what `network` predicts for `x` [B, C, *frame], flipped along `axes` meanwhile."""
        if axes:
            x = x.flip(axes)
        x = x.to(self.precision, memory_format=channels_last(self.frame.dims))
        autocast = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=autocast):
            logits: Tensor = network(x)
        # Contiguous like the sums: softmax and the sum that follows are several times faster.
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
        probabilities = logits.softmax(1)
        return probabilities.flip(axes) if axes else probabilities


def _copied(by_class: Iterator[Tensor], target: NDArray[np.floating]) -> Iterator[Tensor]:
    """Yield all tensors, those of the classes [n, H, W] after writing them to `target` [K, …]."""
    for place, values in zip(target, by_class, strict=False):  # in this order, none is lost
        place[...] = values.cpu().numpy()
        yield values
    yield from by_class


def build_inferer(
    checkpoints: Sequence[Checkpoint],
    device: str | None,
    notify: Notify,
    protocol: Protocol = "strict",
    *,
    tta: bool = False,
    certainty: bool = False,
) -> Inferer:
    """Build the inferer of a checkpoint, or of an ensemble that `load_ensemble` accepts.

    It runs in the precision that all are configured with, or in fp32 if they differ. `device` None
    or auto is the first GPU, else the CPU. With `tta`, predictions are averaged over flips along
    the axes that all were trained with, and with `certainty` it is measured. Raises UsageError if
    the device does not exist, or if there is no such axis.
    """
    mirrored_axes = common_flipped_axes(checkpoints) if tta else ()
    keep_freed_memory()
    chosen = pick_device(device)
    names = {checkpoint.config.train.precision for checkpoint in checkpoints}
    precision = pick_precision(names.pop() if len(names) == 1 else "fp32", chosen)
    notify(f"device: {describe(chosen, precision)}")
    models = [load_predictor(checkpoint, chosen) for checkpoint in checkpoints]
    first = checkpoints[0]
    return Inferer(
        models,
        first.config.data.frame,
        first.spec,
        chosen,
        precision,
        protocol,
        mirrored_axes=mirrored_axes,
        notify=notify,
        certainty=certainty,
    )
