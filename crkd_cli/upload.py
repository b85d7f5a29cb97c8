"""From the host to the device."""

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device) -> Tensor:
    """x of the host on `device`. Through pinned memory to a GPU: from any other the driver may wait for all of the GPU's work."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
