"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) in the slim variant of the field's benchmarks (Luo, SSL4MIS)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crkd_cli.models.blocks import Dropout, batch_norm, conv, conv_up, double, max_pool
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Decoder, Network, Upsampling

DROPOUT = (0.05, 0.1, 0.2, 0.3)  # per level going down, but for the bottom; none going up


def block(dims: int, inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two 3-wide convolutions, batch norm and leaky ReLU after each, dropout of single elements between."""
    return nn.Sequential(
        conv(dims, inputs, outputs, 3),
        batch_norm(dims, outputs),
        nn.LeakyReLU(0.01, inplace=True),
        Dropout(dropout),
        conv(dims, outputs, outputs, 3),
        batch_norm(dims, outputs),
        nn.LeakyReLU(0.01, inplace=True),
    )


def upsample(dims: int, deep: int, skip: int, upsampling: Upsampling) -> nn.Module:
    """Twice the size and `skip` channels: a transposed convolution, 1-wide then linear, or nearest then 3-wide."""
    if upsampling == "transposed":
        return conv_up(dims, deep, skip)
    if upsampling == "linear":
        return nn.Sequential(conv(dims, deep, skip, 1), double(dims, upsampling))
    return nn.Sequential(double(dims, upsampling), conv(dims, deep, skip, 3))


class UNetDecoder(Decoder):
    def __init__(
        self, dims: int, classes: int, widths: Sequence[int], upsampling: Upsampling
    ) -> None:
        steps_up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (256, 128), (128, 64) …
        super().__init__(
            [upsample(dims, deep, skip, upsampling) for deep, skip in steps_up],
            [block(dims, 2 * skip, skip, 0.0) for _, skip in steps_up],
            conv(dims, widths[0], classes, 3),
        )

    def merge_skip(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([skip, upsampled], dim=1)


@NETWORKS.register
class UNet(Network):
    """1,813,764 parameters in 2D with one channel and four classes. Its maps grow linearly."""

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
        rates, inputs = (*DROPOUT, bottom_dropout), (channels, *widths[:-1])
        self.down = nn.ModuleList(
            block(dims, i, o, p) for i, o, p in zip(inputs, widths, rates, strict=True)
        )
        self.downsample = nn.ModuleList(max_pool(dims) for _ in widths[1:])
        self.decoder = self.new_decoder(upsampling)

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        return UNetDecoder(self.dims, self.classes, self.widths, upsampling or "linear")
