"""From an image as stored to a label map or probabilities: resizing or a sliding window, in batches on the device.

Legend: B batch, N slices of a case (1 where the case is not cut), C channels, K classes, *S spatial axes.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crkd_cli.augment.spatial import resize_image
from crkd_cli.config import Frame
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError
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
)
from crkd_cli.windows import Slices, padding, windows

Protocol = Literal["strict", "paper"]
_LINEAR = {2: "bilinear", 3: "trilinear"}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Inferer:
    """Runs `model` over whole cases, with the weights that it had when the inferer was made or last refreshed.

    frame.resize: the image, or every slice, goes through the network at the frame's size and comes back. strict: the
    image is resized as in training and the probabilities linearly; paper: both nearest.
    frame.patch: a sliding window whose probabilities are averaged. strict: half a patch of stride, Gaussian weights;
    paper: the published stride, equal weights.
    A case with one axis more than the frame is cut into slices along its first axis.

    When the device runs out of memory, the batch of windows halves, then the sums move to the host; `notice` is told
    once. Raises CrkdError if not even that is enough.
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
        notice: Notify = _to_stderr,
    ) -> None:
        # A batch that fills a GPU (16 windows of LA), or of which a CPU's cache holds some (one window, or 8 slices of ACDC).
        voxels = 2**24 if device.type == "cuda" else 2**19
        self.model = model
        self.frame = frame
        self.spec = spec
        self.device = device
        self.precision = precision
        self.protocol = protocol
        self.window_batch = window_batch or max(1, voxels // math.prod(frame.size))
        self.notice = notice
        self._home = device  # where a case and the sum of its windows lie
        self._told = False
        self.refresh()

    def refresh(self) -> None:
        """Takes over the model's weights as they are now. The model itself is left alone, its mode too."""
        self._network = fuse_for_inference(self.model, self.precision)
        self._network.to(memory_format=channels_last(self.frame.dims))  # type: ignore[call-overload]

    def __call__(self, image: NDArray[Any], size: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Labels [*S] of `image` [C, *S] as stored (uint8 0-255, or normalized floats); at `size` where it is given."""
        blocks = np.concatenate([_labels(block) for block in self._blocks(image, size)])
        return blocks if self._cut(image) else blocks[0]

    def probabilities(
        self, image: NDArray[Any], size: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """Class probabilities [K, *S], float32, of `image` [C, *S]; at `size` where it is given."""
        blocks = np.concatenate([block.cpu().numpy() for block in self._blocks(image, size)])
        return np.moveaxis(blocks, 1, 0) if self._cut(image) else blocks[0]

    def _cut(self, image: NDArray[Any]) -> bool:
        return image.ndim - 1 == self.frame.dims + 1

    def _blocks(self, image: NDArray[Any], size: Sequence[int] | None) -> Iterator[Tensor]:
        """Probabilities [N, K, *S] of the case, some slices at a time, or of the whole case where it is not cut."""
        if image.shape[0] != self.spec.channels or image.ndim - 1 - self.frame.dims not in (0, 1):
            raise CrkdError(
                f"the image has {image.shape[0]} channel(s) and {image.ndim - 1} axes; "
                f"the model needs {self.spec.channels} channel(s) and {self.frame.dims} axes, or a stack of such"
            )
        slices = np.moveaxis(image, 1, 0) if self._cut(image) else image[None]
        target = tuple(size or image.shape[1:])[-self.frame.dims :]
        block = self.window_batch
        for start in range(0, len(slices), block):
            yield self._patiently(slices[start : start + block], target)

    def _patiently(self, slices: NDArray[Any], size: tuple[int, ...]) -> Tensor:
        while True:
            # Give way after the clause: inside it the traceback would keep the tensors alive.
            with suppress(torch.OutOfMemoryError):
                return self._block(slices, size)
            self._give_way()

    def _give_way(self) -> None:
        if self.window_batch > 1:
            self.window_batch //= 2
        elif self._home.type != "cpu":
            self._home = torch.device("cpu")
        else:
            size = "×".join(map(str, self.frame.size))
            raise CrkdError(
                f"{self.device} has not enough memory for one window of {size}; use --device cpu"
            )
        if not self._told:
            self.notice(
                f"{self.device} is short of memory: going on with smaller batches, which takes longer"
            )
            self._told = True

    @torch.inference_mode()
    def _block(self, slices: NDArray[Any], size: tuple[int, ...]) -> Tensor:
        """Probabilities [N, K, *size] of `slices` [N, C, *S]."""
        x = torch.from_numpy(np.array(slices)).to(self._home)  # a copy: memory maps are read-only
        x = x.float() / 255.0 if x.dtype == torch.uint8 else x.float()
        if self.frame.resize is not None:
            return torch.cat(
                [self._resized(part, size) for part in torch.split(x, self.window_batch)]
            )
        return self._resize_back(self._windowed(x), size)

    def _resized(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        paper = self.protocol == "paper"
        small = (
            nearest(x, self.frame.size)
            if paper
            else resize_image(x, self.frame.size, self.spec.modality)
        )
        return self._resize_back(self._softmax(small), size)

    def _resize_back(self, probabilities: Tensor, size: tuple[int, ...]) -> Tensor:
        if tuple(probabilities.shape[2:]) == size:
            return probabilities
        if self.protocol == "paper":  # the same labels as arg-max first and nearest after it
            return nearest(probabilities, size)
        return F.interpolate(
            probabilities, size=size, mode=_LINEAR[self.frame.dims], align_corners=False
        )

    def _windowed(self, x: Tensor) -> Tensor:
        """Probabilities [N, K, *S] of `x` [N, C, *S], the weighted mean over all windows."""
        patch = self.frame.size
        shape = tuple(x.shape[2:])
        pads = padding(shape, patch)
        x = F.pad(x, [amount for pair in reversed(pads) for amount in pair])
        stride, weight = self._window()
        places: list[Slices] = [
            (slice(None), *window) for window in windows(tuple(x.shape[2:]), patch, stride)
        ]
        where = [(n, place) for n in range(len(x)) for place in places]
        total = torch.zeros(len(x), len(self.spec.classes), *x.shape[2:], device=self._home)
        for start in range(0, len(where), self.window_batch):
            batch = where[start : start + self.window_batch]
            crops = torch.stack([x[n][place] for n, place in batch])
            for (n, place), probabilities in zip(batch, self._softmax(crops), strict=True):
                total[n][place].addcmul_(probabilities, weight)
        unpad: Slices = tuple(
            slice(before, before + side) for (before, _), side in zip(pads, shape, strict=True)
        )
        total = total[(slice(None), slice(None), *unpad)]
        # The classes' probabilities add up to one in every window, so their sum is the sum of the weights.
        return total.div_(total.sum(1, keepdim=True))

    def _window(self) -> tuple[tuple[int, ...], Tensor]:
        """Stride and weight [*patch] of the sliding window."""
        patch = self.frame.size
        half = tuple(side // 2 for side in patch)
        if self.protocol == "paper":
            return self.frame.stride or half, torch.ones(patch, device=self._home)
        return half, gaussian(patch).to(self._home)

    def _softmax(self, x: Tensor) -> Tensor:
        """Probabilities [B, K, *frame] in float32 on the home device of `x` [B, C, *frame]."""
        x = x.to(self.device, self.precision, memory_format=channels_last(self.frame.dims))
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            logits: Tensor = self._network(x)
        # Class by class in memory, as the sums are: both passes that follow are several times faster.
        return (
            logits.to(torch.float32, memory_format=torch.contiguous_format)
            .softmax(1)
            .to(self._home)
        )


def build_inferer(
    checkpoint: Checkpoint, device: str | None, notify: Notify, protocol: Protocol = "strict"
) -> Inferer:
    """The inferer of `checkpoint` in its precision on `device` (None: the first GPU, else the CPU). Raises UsageError."""
    keep_freed_memory()
    where = pick_device(device)
    precision = pick_precision(checkpoint.config.train.precision, where)
    notify(f"device: {describe(where, precision)}")
    model = load_predictor(checkpoint, where)
    return Inferer(
        model,
        checkpoint.config.data.frame,
        checkpoint.spec,
        where,
        precision,
        protocol,
        notice=notify,
    )


def gaussian(patch: Sequence[int]) -> Tensor:
    """Weights [*patch] of a window: a Gaussian with sigma = side / 8, at least 1e-3 (Isensee et al., 2021; MONAI)."""
    weight: Tensor = torch.ones(())
    for side in patch:
        x = torch.arange(side) - (side - 1) / 2
        weight = weight.unsqueeze(-1) * torch.exp(-0.5 * (x / (side / 8)) ** 2)
    return weight.clamp_min(1e-3)


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """`x` [B, C, *S] at `size` by the nearest neighbor with the corners aligned: scipy.ndimage.zoom with order 0."""
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if old != new:
            step = (old - 1) / (new - 1) if new > 1 else 0.0
            index = (torch.arange(new, dtype=torch.float64) * step + 0.5).floor().long()
            x = x.index_select(axis, index.to(x.device))
    return x


def _labels(probabilities: Tensor) -> NDArray[np.uint8]:
    """Arg-max [N, *S] of [N, K, *S]; in parts, because torch's is int64, eight times as large as the labels."""
    rows = max(1, 2**24 // math.prod((probabilities.shape[0], *probabilities.shape[3:])))
    parts = [part.argmax(1).to(torch.uint8) for part in torch.split(probabilities, rows, dim=2)]
    return torch.cat(parts, dim=1).cpu().numpy()
