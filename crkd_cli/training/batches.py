"""The batches of a run: items from the streams, moved to the device and augmented there."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from crkd_cli import world
from crkd_cli.augment.policy import ChannelTraits, Policy
from crkd_cli.augment.published import Published
from crkd_cli.augment.spatial import center_crop
from crkd_cli.augment.strong import Strong
from crkd_cli.config import Config, DataConfig
from crkd_cli.data.batch import Batch, Labeled, Unlabeled
from crkd_cli.data.dataset import Dataset
from crkd_cli.data.splits import Part, Split
from crkd_cli.data.store import Store
from crkd_cli.data.stream import Stream
from crkd_cli.errors import CrkdError
from crkd_cli.methods.base import Method
from crkd_cli.runtime.device import channels_last
from crkd_cli.runtime.distributed import check_divisible
from crkd_cli.transfer import pin, to_device, to_unit_range

HostBatch = tuple[Tensor, Tensor | None]
# How many bytes of resized items the processes of all runs of `crkd train` together keep in memory
# for each part of the split: reading them again in every epoch would slow down a GPU.
CACHE_BYTES = 2**30
POLICIES: dict[str, type[Policy]] = {"published": Published, "strong": Strong}
ANISOTROPY = 3.0  # ratio of spacings from which volumes are turned in plane only, as in nnU-Net


@dataclass(frozen=True)
class BatchLoader:
    """Reads the items of a step and turns them into a batch on the device."""

    labeled: Stream
    unlabeled: tuple[Stream, ...]  # none, the images, or the images and their mixing partners
    policy: Policy
    strong_views: int
    seed: int
    device: torch.device

    def read(self, step: int) -> list[HostBatch]:
        """Read this process's items of `step`; pinned in memory if a GPU will fetch them."""
        batches = [stream.batch(step) for stream in (self.labeled, *self.unlabeled)]
        return [
            (pin(image, self.device), None if label is None else pin(label, self.device))
            for image, label in batches
        ]

    def batch(self, items: list[HostBatch], step: int) -> Batch:
        """Move what `read` returned to the device and augment it, as (seed, step) determines."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        labeled, *unlabeled = items
        image, label = self._to_device(labeled)
        if label is None:
            raise ValueError("the labeled stream has no labels")
        image, label = self.policy.labeled(image, label, generator)
        views = [self._views(batch, generator) for batch in unlabeled]
        chosen = self.labeled.chosen(step)
        if chosen is not None:
            chosen = to_device(chosen, self.device)
        return Batch(Labeled(self._channels_last(image), label.long(), chosen), *views)

    def images(self, items: HostBatch) -> Tensor:
        """Move the images [B, C, *S] of `items` to the device without augmenting them."""
        image = center_crop(self._to_device(items)[0], self.policy.size)
        return self._channels_last(image)

    def _views(self, items: HostBatch, generator: Generator) -> Unlabeled:
        weak = self.policy.weak(self._to_device(items)[0], generator)
        strong = tuple(
            self._channels_last(self.policy.strong(weak, generator))
            for _ in range(self.strong_views)
        )
        return Unlabeled(self._channels_last(weak), strong)

    def _to_device(self, items: HostBatch) -> HostBatch:
        image, label = items
        image = to_unit_range(to_device(image, self.device))
        return image, None if label is None else to_device(label, self.device)

    @staticmethod
    def _channels_last(image: Tensor) -> Tensor:
        return image.contiguous(memory_format=channels_last(image.ndim - 2))


def step_seed(seed: int, step: int) -> int:
    """Return a seed for one step of a run; different seeds or steps give unrelated draws."""
    return (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) % 2**63


def build_loader(
    config: Config, store: Store, split: Split, method_class: type[Method], device: torch.device
) -> BatchLoader:
    """Build the streams of the split's training parts.

    Raises CrkdError if a part is empty or missing in the store, UsageError if the processes cannot
    share a batch evenly.
    """
    data, seed = config.data, config.train.seed
    policy = _build_policy(data, store)
    images = _labeled_images(config, store, split, policy, device)
    labeled = Stream(images, data.labeled_batch_size, seed, 0, data.foreground_share)
    unlabeled: tuple[Stream, ...] = ()
    if method_class.unlabeled_streams:
        images = _unlabeled_images(config, store, split, policy, device)
        unlabeled = tuple(
            Stream(images, data.unlabeled_batch_size, seed, number)
            for number in range(1, 1 + method_class.unlabeled_streams)
        )
    return BatchLoader(labeled, unlabeled, policy, method_class.strong_views, seed, device)


def _build_policy(data: DataConfig, store: Store) -> Policy:
    dims, spec = data.frame.dims, store.spec
    plane = spec.plane(dims)
    return POLICIES[data.augment](
        channels=[
            ChannelTraits(info.modality, bounded=info.intensity in ("uint8", "minmax"))
            for info in spec.channels
        ],
        size=data.frame.size,
        plane=plane,
        mirror=data.mirrored_axes,
        label_values=len(spec.classes) + (spec.ignore is not None),
        anisotropic=spec.dims == dims == 3 and _is_anisotropic(store, data.frame.size, plane),
    )


def _is_anisotropic(store: Store, size: tuple[int, ...], plane: tuple[int, int]) -> bool:
    """Return whether the axis outside `plane` is so coarse that volumes are turned in it alone.

    It is if its spacing is at least three times that in the plane. Where the files do not state
    it, the sides of the patch are compared instead.
    """
    (through,) = {0, 1, 2} - set(plane)
    spacings = [case.spacing_mm for case in store.cases.values() if case.spacing_mm is not None]
    if spacings:
        spacing = np.median(spacings, axis=0)
        return bool(spacing[through] >= ANISOTROPY * min(spacing[axis] for axis in plane))
    return max(size) >= ANISOTROPY * size[through]


def _labeled_images(
    config: Config, store: Store, split: Split, policy: Policy, device: torch.device
) -> Dataset:
    check_divisible("data.labeled_batch_size", config.data.labeled_batch_size)
    images = _images(config, store, split, "labeled", policy, device)
    if not len(images):
        raise CrkdError(
            f"split {split.name} has no labeled training case; "
            f"run: crkd make-splits {store.spec.name}"
        )
    return images


def _unlabeled_images(
    config: Config, store: Store, split: Split, policy: Policy, device: torch.device
) -> Dataset:
    check_divisible("data.unlabeled_batch_size", config.data.unlabeled_batch_size)
    images = _images(config, store, split, "unlabeled", policy, device)
    if not len(images):
        raise CrkdError(
            f"split {split.name} has no unlabeled training case, and method {config.method} needs "
            "them; add images without labels, label fewer (crkd make-splits --labeled N), or use "
            "--method supervised"
        )
    return images


def _images(
    config: Config, store: Store, split: Split, part: Part, policy: Policy, device: torch.device
) -> Dataset:
    processes = world.size() * world.runs()
    return Dataset(
        store,
        split.cases(store, part),
        config.data.frame,
        labeled=part == "labeled",
        source_size=policy.source_size,
        cache_bytes=CACHE_BYTES // processes if device.type == "cuda" else 0,
    )
