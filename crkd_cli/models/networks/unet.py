"""U-Net (Ronneberger, Fischer and Brox, MICCAI 2015) in the slim variant of SSL4MIS (Luo)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crkd_cli.config import Strides
from crkd_cli.models.blocks import Dropout, batch_norm, conv, conv_up, interpolation, max_pool
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Decoder, Network, Upsampling

DROPOUT = (0.05, 0.1, 0.2, 0.3)  # of the encoder's levels above the bottom; the decoder has none


def double_conv(dims: int, inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Build two 3-wide convolutions with batch norm and leaky ReLU, and dropout in between."""
    return nn.Sequential(
        conv(dims, inputs, outputs, 3),
        batch_norm(dims, outputs),
        nn.LeakyReLU(0.01, inplace=True),
        Dropout(dropout),
        conv(dims, outputs, outputs, 3),
        batch_norm(dims, outputs),
        nn.LeakyReLU(0.01, inplace=True),
    )


def upsample(inputs: int, outputs: int, stride: Sequence[int], upsampling: Upsampling) -> nn.Module:
    """Build layers that multiply the axes by `stride` and reduce the channels."""
    if upsampling == "transposed":
        return conv_up(inputs, outputs, stride)
    dims, resize = len(stride), interpolation(stride, upsampling)
    if upsampling == "linear":
        return nn.Sequential(conv(dims, inputs, outputs, 1), resize)
    return nn.Sequential(resize, conv(dims, inputs, outputs, 3))


class UNetDecoder(Decoder):
    """Concatenates skips and upsampled maps."""

    def __init__(
        self, classes: int, widths: Sequence[int], strides: Strides, upsampling: Upsampling
    ) -> None:
        dims, skips = len(strides[0]), widths[-2::-1]  # 128, 64, …
        steps_up = zip(widths[:0:-1], skips, reversed(strides), strict=True)  # (256, 128, …), …
        super().__init__(
            [upsample(deep, skip, stride, upsampling) for deep, skip, stride in steps_up],
            [double_conv(dims, 2 * skip, skip, 0.0) for skip in skips],
            conv(dims, widths[0], classes, 3),
        )

    def merge_skip(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, upsampled], dim=1)


@NETWORKS.register
class UNet(Network):
    """Upsamples linearly by default.

    Has 1,813,764 parameters in 2D with one channel and four classes.
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
        inputs = (channels, *widths[:-1])
        rates = (*DROPOUT, bottom_dropout)
        levels = zip(inputs, widths, rates, strict=True)
        self.down = nn.ModuleList(double_conv(dims, i, width, rate) for i, width, rate in levels)
        self.downsample = nn.ModuleList(map(max_pool, self.strides))
        self.decoder = self.new_decoder(upsampling)

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        return UNetDecoder(self.classes, self.widths, self.strides, upsampling or "linear")
