"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015) in the slim variant of the field's benchmarks (Luo, SSL4MIS)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crkd_cli.models.blocks import Dropout, batch_norm, conv, double, max_pool
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Network

DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)    # per level going down; none going up


def block(dims: int, inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two 3-wide convolutions, batch norm and leaky ReLU after each, dropout of single elements between."""
    return nn.Sequential(
        conv(dims, inputs, outputs, 3), batch_norm(dims, outputs), nn.LeakyReLU(0.01, inplace=True), Dropout(dropout),
        conv(dims, outputs, outputs, 3), batch_norm(dims, outputs), nn.LeakyReLU(0.01, inplace=True),
    )  # fmt: skip


@NETWORKS.register
class UNet(Network):
    """1,813,764 parameters in 2D with one channel and four classes."""

    def __init__(self, dims: int, channels: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__(dims, channels, classes, widths)
        self.features = widths[0]
        inputs = (channels, *widths[:-1])
        self.down = nn.ModuleList(block(dims, i, o, p) for i, o, p in zip(inputs, widths, DROPOUT, strict=True))
        self.pool = max_pool(dims)
        steps_up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))    # (256, 128), (128, 64) …
        self.narrow = nn.ModuleList(conv(dims, deep, skip, 1) for deep, skip in steps_up)
        self.up = nn.ModuleList(block(dims, 2 * skip, skip, 0.0) for _, skip in steps_up)
        self.output = conv(dims, widths[0], classes, 3)

    def encode(self, x: Tensor) -> list[Tensor]:
        pyramid = [self.down[0](x)]
        for level in self.down[1:]:
            pyramid.append(level(self.pool(pyramid[-1])))
        return pyramid

    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        x = pyramid[-1]
        for narrow, up, skip in zip(self.narrow, self.up, pyramid[-2::-1], strict=True):
            x = up(torch.cat([skip, double(narrow(x))], dim=1))
        return x

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(features)
        return logits
