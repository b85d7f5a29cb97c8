"""Moves tensors to the device and turns stored values into network input."""

import torch
from torch import Tensor


def pin(x: Tensor, device: torch.device) -> Tensor:
    """Copy `x` to pinned host memory if `device` is a GPU, so that the transfer can overlap."""
    return x.pin_memory() if device.type == "cuda" else x


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy `x` from the host to `device`.

    A GPU copies through pinned memory: from pageable memory the driver may wait for all of the
    GPU's work.
    """
    if x.device.type == "cpu" and not x.is_pinned():
        x = pin(x, device)
    return x.to(device, non_blocking=True)


def to_unit_range(image: Tensor) -> Tensor:
    """Return stored values as network input: uint8 0-255 as float32 0-1, floats as they are."""
    return image.float() / 255.0 if image.dtype == torch.uint8 else image.float()
