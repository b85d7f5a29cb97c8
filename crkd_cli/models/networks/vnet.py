"""V-Net (Milletari, Navab and Ahmadi, 3DV 2016), without residual sums.

This is the variant of UA-MT (Yu et al., MICCAI 2019).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from crkd_cli.config import Strides
from crkd_cli.models.blocks import (
    batch_norm,
    conv,
    conv_down,
    conv_up,
    drop_channels,
    interpolation,
)
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Decoder, Network, Upsampling

DEPTHS = (1, 2, 3, 3, 3)  # 3-wide convolutions per level; the decoder mirrors them
DROPOUT = 0.5  # of whole channels, before the output


def conv_stage(dims: int, depth: int, inputs: int, outputs: int) -> nn.Sequential:
    """Build `depth` 3-wide convolutions, with batch norm and ReLU after each."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [
            conv(dims, outputs if number else inputs, outputs, 3),
            batch_norm(dims, outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def resample(dims: int, outputs: int, *layers: nn.Module) -> nn.Sequential:
    """Append batch norm and ReLU to `layers`, which change the resolution."""
    return nn.Sequential(*layers, batch_norm(dims, outputs), nn.ReLU(inplace=True))


def upsample(
    inputs: int, outputs: int, stride: Sequence[int], upsampling: Upsampling
) -> nn.Sequential:
    """Build layers that multiply the axes by `stride`.

    These are a transposed convolution, or interpolation and a 3-wide one. Batch norm and ReLU
    follow.
    """
    dims = len(stride)
    if upsampling == "transposed":
        return resample(dims, outputs, conv_up(inputs, outputs, stride))
    resize = interpolation(stride, upsampling)
    return resample(dims, outputs, resize, conv(dims, inputs, outputs, 3))


class VNetDecoder(Decoder):
    """Adds skips to upsampled maps."""

    def __init__(
        self, classes: int, widths: Sequence[int], strides: Strides, upsampling: Upsampling
    ) -> None:
        dims = len(strides[0])
        steps_up = zip(widths[:0:-1], widths[-2::-1], reversed(strides), strict=True)
        levels = zip(DEPTHS[-2::-1], widths[-2::-1], strict=True)
        super().__init__(
            [upsample(deep, skip, stride, upsampling) for deep, skip, stride in steps_up],
            [conv_stage(dims, depth, width, width) for depth, width in levels],
            conv(dims, widths[0], classes, 1),
        )

    def merge_skip(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        return upsampled + skip

    def drop(self, features: Tensor) -> Tensor:
        return drop_channels(features, DROPOUT) if self.training else features


@NETWORKS.register
class VNet(Network):
    """Upsamples by transposed convolutions by default.

    Has 9.45 million parameters in 3D with one channel and two classes.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        classes: int,
        widths: Sequence[int],
        upsampling: Upsampling | None = None,
        bottom_dropout: float = 0.5,
        strides: Strides | None = None,
    ) -> None:
        super().__init__(dims, channels, classes, widths, strides=strides)
        self.bottom_dropout = bottom_dropout  # of whole channels
        levels = zip(DEPTHS, (channels, *widths[1:]), widths, strict=True)
        self.down = nn.ModuleList(
            conv_stage(dims, depth, inputs, width) for depth, inputs, width in levels
        )
        self.downsample = nn.ModuleList(
            resample(dims, deep, conv_down(width, deep, stride))
            for (width, deep), stride in zip(pairwise(widths), self.strides, strict=True)
        )
        self.decoder = self.new_decoder(upsampling)

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        return VNetDecoder(self.classes, self.widths, self.strides, upsampling or "transposed")

    def encode(self, x: Tensor, feedback: Sequence[Tensor | None] = (None,) * 5) -> list[Tensor]:
        pyramid = super().encode(x, feedback)
        if self.training:
            pyramid[-1] = drop_channels(pyramid[-1], self.bottom_dropout)
        return pyramid
