"""Predict whole cases: by resizing or with a sliding window, in batches on the device.

Legend: B batch, N slices of a case (1 if it is not split into slices), C channels, K classes,
*S spatial axes.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crkd_cli.augment.spatial import resize_image
from crkd_cli.config import Frame
from crkd_cli.data.store import DatasetSpec, label_dtype
from crkd_cli.errors import CrkdError, is_out_of_memory
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
from crkd_cli.windows import Slices, padding, windows

Protocol = Literal["strict", "paper"]
MANY_CLASSES = 32  # from here on, probabilities take more memory than features
_LINEAR = {2: "bilinear", 3: "trilinear"}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Inferer:
    """Runs a model over whole cases.

    With `frame.resize`, the image (or every slice) is resized to the frame, and its probabilities
    back to the original size. Protocol strict: as in training, and linearly on the way back;
    paper: nearest neighbor both times.

    With `frame.patch`, the probabilities of a sliding window are averaged. Protocol strict: a
    stride of half a patch and Gaussian weights; paper: the published stride and equal weights.

    A case with one more axis than the frame is split into slices along its first axis.

    If the device runs out of memory, the batch of windows is halved; if one window at a time is
    still too much, cases and sums are kept on the host. `notify` is called once. Raises CrkdError
    if even that is not enough.

    Args:
        model: Its weights are copied here and in `refresh`, and its mode is left alone.
        frame: Size and stride of the network's input.
        spec: The dataset that the model was trained on.
        device: Where the network runs.
        precision: torch.float32, or another type for autocast.
        protocol: strict or paper.
        window_batch: Windows or slices per batch. None: chosen for the device.
        notify: Called with messages for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        frame: Frame,
        spec: DatasetSpec,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        protocol: Protocol = "strict",
        window_batch: int | None = None,
        notify: Notify = _to_stderr,
    ) -> None:
        # Enough to fill a GPU (16 windows of LA), or what fits in a CPU's cache (one window of LA,
        # 8 slices of ACDC).
        voxels = 2**24 if device.type == "cuda" else 2**19
        voxels = voxels * MANY_CLASSES // max(MANY_CLASSES, len(spec.classes))
        self.model = model
        self.frame = frame
        self.spec = spec
        self.device = device
        self.precision = precision
        self.protocol = protocol
        self.window_batch = window_batch or max(1, voxels // math.prod(frame.size))
        self.notify = notify
        self._case_device = device  # where a case and the sums of its windows are kept
        self._warned = False
        self.refresh()

    def refresh(self) -> None:
        """Copy the model's current weights."""
        network = fuse_for_inference(self.model, self.precision)
        self._network = to_channels_last(network, self.frame.dims)

    def __call__(self, image: NDArray[Any], size: Sequence[int] | None = None) -> NDArray[Any]:
        """Return class numbers [*S] of `image` [C, *S].

        Args:
            image: As stored: uint8 0-255, or normalized floats.
            size: Size of the labels. None: that of the image.
        """
        blocks = self._infer_blocks(image, size)
        labels = np.concatenate([most_probable(block).cpu().numpy() for block in blocks])
        return labels if self._has_slices(image) else labels[0]

    def probabilities(
        self, image: NDArray[Any], size: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Return class probabilities [K, *S] of `image` [C, *S]; arguments as for labels."""
        blocks = [block.cpu().numpy() for block in self._infer_blocks(image, size)]
        probabilities = np.concatenate(blocks)
        return np.moveaxis(probabilities, 1, 0) if self._has_slices(image) else probabilities[0]

    def _has_slices(self, image: NDArray[Any]) -> bool:
        return image.ndim - 1 == self.frame.dims + 1

    def _infer_blocks(self, image: NDArray[Any], size: Sequence[int] | None) -> Iterator[Tensor]:
        """Yield probabilities [N, K, *S]: of a few slices at a time, or of the whole case."""
        axes = image.ndim - 1
        if image.shape[0] != self.spec.channel_count or axes - self.frame.dims not in (0, 1):
            raise CrkdError(
                f"the image has {image.shape[0]} channel(s) and {axes} axes; the model needs "
                f"{self.spec.channel_count} channel(s) and {self.frame.dims} axes, or a stack of "
                "such"
            )
        slices = np.moveaxis(image, 1, 0) if self._has_slices(image) else image[None]
        target_size = tuple(size or image.shape[1:])[-self.frame.dims :]
        block = self.window_batch
        for start in range(0, len(slices), block):
            yield self._infer_with_retries(slices[start : start + block], target_size)

    def _infer_with_retries(self, slices: NDArray[Any], size: tuple[int, ...]) -> Tensor:
        while True:
            # Reduce after the clause: inside it, the traceback would keep the tensors alive.
            with _suppress_out_of_memory():
                return self._infer_slices(slices, size)
            self._reduce_memory(slices.shape[2:])

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

    @torch.inference_mode()
    def _infer_slices(self, slices: NDArray[Any], size: tuple[int, ...]) -> Tensor:
        """Return probabilities [N, K, *size] of `slices` [N, C, *S]."""
        copy = torch.from_numpy(np.array(slices))  # memory maps are read-only
        x = to_unit_range(to_device(copy, self._case_device))
        if self.frame.resize is not None:
            batches = torch.split(x, self.window_batch)
            return torch.cat([self._infer_resized(batch, size) for batch in batches])
        return self._resize_back(self._infer_windows(x), size)

    def _infer_resized(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return probabilities [B, K, *size] of `x` [B, C, *S], resized to the frame."""
        if self.protocol == "paper":
            x = nearest(x, self.frame.size)
        else:
            x = resize_image(x, self.frame.size, nearest=self.spec.resized_to_nearest)
        return self._resize_back(self._softmax(x), size)

    def _resize_back(self, probabilities: Tensor, size: tuple[int, ...]) -> Tensor:
        if tuple(probabilities.shape[2:]) == size:
            return probabilities
        if self.protocol == "paper":  # the same labels as nearest after arg-max
            return nearest(probabilities, size)
        mode = _LINEAR[self.frame.dims]
        return F.interpolate(probabilities, size=size, mode=mode, align_corners=False)

    def _infer_windows(self, x: Tensor) -> Tensor:
        """Return probabilities [N, K, *S] of `x` [N, C, *S]: the weighted mean over all windows."""
        shape = tuple(x.shape[2:])
        pads = padding(shape, self.frame.size)
        x = F.pad(x, [amount for pair in reversed(pads) for amount in pair])
        stride, weight = self._stride_and_weight()
        grid = windows(tuple(x.shape[2:]), self.frame.size, stride)
        boxes: list[Slices] = [(slice(None), *window) for window in grid]  # with all channels
        locations = [(n, box) for n in range(len(x)) for box in boxes]

        total = torch.zeros(len(x), len(self.spec.classes), *x.shape[2:], device=self._case_device)
        for start in range(0, len(locations), self.window_batch):
            batch = locations[start : start + self.window_batch]
            crops = torch.stack([x[n][box] for n, box in batch])
            for (n, box), probabilities in zip(batch, self._softmax(crops), strict=True):
                total[n][box].addcmul_(probabilities, weight)

        unpad: list[slice] = []
        for (before, _), side in zip(pads, shape, strict=True):
            unpad.append(slice(before, before + side))
        total = total[(slice(None), slice(None), *unpad)]
        # Probabilities sum to one in every window, so their sum here is the sum of the weights.
        return total.div_(total.sum(1, keepdim=True))

    def _stride_and_weight(self) -> tuple[tuple[int, ...], Tensor]:
        """Return the stride of the sliding window and its weight [*patch]."""
        patch = self.frame.size
        half = tuple(side // 2 for side in patch)
        if self.protocol == "paper":
            return self.frame.stride or half, torch.ones(patch, device=self._case_device)
        return half, gaussian(patch).to(self._case_device)

    def _softmax(self, x: Tensor) -> Tensor:
        """Return float32 probabilities [B, K, *frame] of `x` [B, C, *frame]."""
        memory_format = channels_last(self.frame.dims)
        x = to_device(x, self.device).to(self.precision, memory_format=memory_format)
        autocast = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=autocast):
            logits: Tensor = self._network(x)
        # Contiguous like the sums: softmax and the sum that follows are several times faster.
        logits = logits.to(torch.float32, memory_format=torch.contiguous_format)
        return logits.softmax(1).to(self._case_device)


def build_inferer(
    checkpoint: Checkpoint, device: str | None, notify: Notify, protocol: Protocol = "strict"
) -> Inferer:
    """Build the inferer of a checkpoint in the precision that it was configured with.

    `device` None or auto is the first GPU, else the CPU. Raises UsageError if it does not exist.
    """
    keep_freed_memory()
    chosen = pick_device(device)
    config = checkpoint.config
    precision = pick_precision(config.train.precision, chosen)
    notify(f"device: {describe(chosen, precision)}")
    model = load_predictor(checkpoint, chosen)
    frame, spec = config.data.frame, checkpoint.spec
    return Inferer(model, frame, spec, chosen, precision, protocol, notify=notify)


@contextmanager
def _suppress_out_of_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise


def gaussian(patch: Sequence[int]) -> Tensor:
    """Return window weights [*patch]: a Gaussian with sigma = side / 8, at least 1e-3.

    As in nnU-Net (Isensee et al., 2021) and MONAI.
    """
    weight: Tensor = torch.ones(())
    for side in patch:
        x = torch.arange(side) - (side - 1) / 2
        weight = weight.unsqueeze(-1) * torch.exp(-0.5 * (x / (side / 8)) ** 2)
    return weight.clamp_min(1e-3)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize `x` [B, C, *S] to `size` by the nearest neighbor with aligned corners.

    This is scipy.ndimage.zoom with order 0.
    """
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if old != new:
            step = (old - 1) / (new - 1) if new > 1 else 0.0
            index = (torch.arange(new, dtype=torch.float64) * step + 0.5).floor().long()
            x = x.index_select(axis, index.to(x.device))
    return x


def most_probable(probabilities: Tensor) -> Tensor:
    """Return class numbers [N, *S] of probabilities [N, K, *S]; of equal ones the first.

    Compares one class after another: torch's argmax over an axis other than the last takes ten
    times as long on a CPU, and returns int64.
    """
    highest = probabilities[:, 0]
    classes = probabilities.shape[1]
    dtype = torch.uint8 if label_dtype(classes) is np.uint8 else torch.int16
    labels = torch.zeros_like(highest, dtype=dtype)
    for k in range(1, classes):
        labels.masked_fill_(probabilities[:, k] > highest, k)
        highest = torch.maximum(highest, probabilities[:, k])
    return labels
