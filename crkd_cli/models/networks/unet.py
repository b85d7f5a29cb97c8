"""U-Net (Ronneberger, Fischer and Brox, MICCAI 2015) in the slim variant of SSL4MIS (Luo)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crkd_cli.models.blocks import Dropout, batch_norm, conv, conv_up, max_pool, upsample_2x
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


def upsample(dims: int, inputs: int, outputs: int, upsampling: Upsampling) -> nn.Module:
    """Build layers that double every axis and reduce the channels."""
    if upsampling == "transposed":
        return conv_up(dims, inputs, outputs)
    if upsampling == "linear":
        return nn.Sequential(conv(dims, inputs, outputs, 1), upsample_2x(dims, upsampling))
    return nn.Sequential(upsample_2x(dims, upsampling), conv(dims, inputs, outputs, 3))


class UNetDecoder(Decoder):
    """Concatenates skips and upsampled maps."""

    def __init__(
        self, dims: int, classes: int, widths: Sequence[int], upsampling: Upsampling
    ) -> None:
        steps_up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (256, 128), (128, 64) …
        super().__init__(
            [upsample(dims, deep, skip, upsampling) for deep, skip in steps_up],
            [double_conv(dims, 2 * skip, skip, 0.0) for _, skip in steps_up],
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
    ) -> None:
        super().__init__(dims, channels, classes, widths)
        inputs = (channels, *widths[:-1])
        rates = (*DROPOUT, bottom_dropout)
        levels = zip(inputs, widths, rates, strict=True)
        self.down = nn.ModuleList(double_conv(dims, i, width, rate) for i, width, rate in levels)
        self.downsample = nn.ModuleList(max_pool(dims) for _ in widths[1:])
        self.decoder = self.new_decoder(upsampling)

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        return UNetDecoder(self.dims, self.classes, self.widths, upsampling or "linear")
