"""V-Net (Milletari, Navab, Ahmadi, 3DV 2016) in the variant of UA-MT (Yu et al., MICCAI 2019): no residual sums."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from crkd_cli.models.blocks import batch_norm, conv, conv_up, drop_channels
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Network

DEPTHS = (1, 2, 3, 3, 3)    # 3-wide convolutions per level, mirrored going up
DROPOUT = 0.5               # of whole channels, at the bottom and before the output


def stage(dims: int, depth: int, inputs: int, outputs: int) -> nn.Sequential:
    """`depth` 3-wide convolutions, batch norm and ReLU after each."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [conv(dims, outputs if number else inputs, outputs, 3), batch_norm(dims, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def resample(dims: int, layer: nn.Module, outputs: int) -> nn.Sequential:
    """A strided or transposed convolution, batch norm, ReLU."""
    return nn.Sequential(layer, batch_norm(dims, outputs), nn.ReLU(inplace=True))


@NETWORKS.register
class VNet(Network):
    """9.45 million parameters in 3D with one channel and two classes."""

    def __init__(self, dims: int, channels: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__(dims, channels, classes, widths)
        self.features = widths[0]
        inputs = (channels, *widths[1:])
        self.down = nn.ModuleList(stage(dims, d, i, o) for d, i, o in zip(DEPTHS, inputs, widths, strict=True))
        halves = list(pairwise(widths))            # (16, 32), (32, 64) …
        self.halve = nn.ModuleList(resample(dims, conv(dims, i, o, 2, stride=2), o) for i, o in halves)
        self.grow = nn.ModuleList(resample(dims, conv_up(dims, o, i), i) for i, o in reversed(halves))
        self.up = nn.ModuleList(stage(dims, d, w, w) for d, w in zip(DEPTHS[-2::-1], widths[-2::-1], strict=True))
        self.output = conv(dims, widths[0], classes, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        pyramid = [self.down[0](x)]
        for halve, level in zip(self.halve, self.down[1:], strict=True):
            pyramid.append(level(halve(pyramid[-1])))
        return [*pyramid[:-1], self._drop(pyramid[-1])]

    def decode(self, pyramid: Sequence[Tensor]) -> Tensor:
        x = pyramid[-1]
        for grow, up, skip in zip(self.grow, self.up, pyramid[-2::-1], strict=True):
            x = up(grow(x) + skip)
        return x

    def head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output(self._drop(features))
        return logits

    def _drop(self, x: Tensor) -> Tensor:
        return drop_channels(x, DROPOUT) if self.training else x
