"""What the machine can do: a matrix product, the networks' convolutions, in the precision that crkd trains in, and a copy."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional

from benchmarks.speed.inputs import Sizes
from benchmarks.speed.timing import Patience, in_turn

PASSES = 3  # forward, gradient of the input, gradient of the weights


def bounds(sizes: Sizes, precision: torch.dtype, device: torch.device) -> list[dict[str, Any]]:
    """Rates of a large product, of convolutions of the networks' first and fourth level with their gradients, of a copy."""
    found = [_product(1536, precision, device)]
    for size, batch in ((sizes.image, 3 * sizes.images), (sizes.patch, 3 * sizes.patches)):
        for channels, shrink in ((16, 1), (128, 8)):
            found.append(
                _convolution(
                    [max(side // shrink, 1) for side in size], batch, channels, precision, device
                )
            )
    return [*found, _copy(device)]


def _product(side: int, precision: torch.dtype, device: torch.device) -> dict[str, Any]:
    a, b = (torch.rand(side, side, device=device, dtype=precision) for _ in range(2))
    return {
        "what": f"matrix product {side}²",
        "gflops_per_s": _rate(lambda: a @ b, 2 * side**3, device),
    }


def _convolution(
    size: Sequence[int], batch: int, channels: int, precision: torch.dtype, device: torch.device
) -> dict[str, Any]:
    dims = len(size)
    layout = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    conv = (functional.conv2d, functional.conv3d)[dims - 2]
    x = torch.rand(batch, channels, *size, device=device, dtype=precision).contiguous(
        memory_format=layout
    )
    weight = torch.rand(channels, channels, *[3] * dims, device=device, dtype=precision).contiguous(
        memory_format=layout
    )
    gradient = torch.rand_like(x)
    x.requires_grad_()
    weight.requires_grad_()

    def work() -> None:
        torch.autograd.grad(conv(x, weight, padding=1), (x, weight), gradient)

    operations = PASSES * 2 * batch * channels**2 * 3**dims * prod(size)
    what = f"convolution {'×'.join(map(str, size))}, {channels} channels, {batch} images, with gradients"
    return {"what": what, "gflops_per_s": _rate(work, operations, device)}


def _copy(device: torch.device) -> dict[str, Any]:
    source = torch.zeros(2**28, dtype=torch.uint8, device=device)  # larger than a cache
    target = torch.ones_like(source)
    rate = _rate(lambda: target.copy_(source), 2 * source.numel(), device)
    return {"what": "copy of 268 MB, read and written", "gb_per_s": rate}


def _rate(work: Any, operations: int, device: torch.device) -> float:
    """Operations, or bytes, a nanosecond, of the median of some calls."""

    def finished() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return operations / in_turn({"": finished}, Patience(0.5, least=3))[""].median / 1e9
