"""V-Net (Milletari, Navab, Ahmadi, 3DV 2016) in the variant of UA-MT (Yu et al., MICCAI 2019): no residual sums."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from crkd_cli.models.blocks import batch_norm, conv, conv_up, double, drop_channels
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Decoder, Network, Upsampling

DEPTHS = (1, 2, 3, 3, 3)  # 3-wide convolutions per level, mirrored going up
DROPOUT = 0.5  # of whole channels, before the output


def stage(dims: int, depth: int, inputs: int, outputs: int) -> nn.Sequential:
    """`depth` 3-wide convolutions, batch norm and ReLU after each."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [
            conv(dims, outputs if number else inputs, outputs, 3),
            batch_norm(dims, outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def resample(dims: int, outputs: int, *layers: nn.Module) -> nn.Sequential:
    """`layers`, which halve or double every axis, then batch norm and ReLU."""
    return nn.Sequential(*layers, batch_norm(dims, outputs), nn.ReLU(inplace=True))


def upsample(dims: int, inputs: int, outputs: int, upsampling: Upsampling) -> nn.Sequential:
    """Twice the size: a transposed convolution, or doubling and a 3-wide one."""
    if upsampling == "transposed":
        return resample(dims, outputs, conv_up(dims, inputs, outputs))
    return resample(dims, outputs, double(dims, upsampling), conv(dims, inputs, outputs, 3))


class VNetDecoder(Decoder):
    def __init__(
        self, dims: int, classes: int, widths: Sequence[int], upsampling: Upsampling
    ) -> None:
        super().__init__(
            [upsample(dims, deep, skip, upsampling) for deep, skip in pairwise(reversed(widths))],
            [stage(dims, d, w, w) for d, w in zip(DEPTHS[-2::-1], widths[-2::-1], strict=True)],
            conv(dims, widths[0], classes, 1),
        )

    def merge_skip(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        return upsampled + skip

    def drop(self, features: Tensor) -> Tensor:
        return drop_channels(features, DROPOUT) if self.training else features


@NETWORKS.register
class VNet(Network):
    """9.45 million parameters in 3D with one channel and two classes. Its maps grow by transposed convolutions."""

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
        self.bottom_dropout = bottom_dropout  # of whole channels
        inputs = (channels, *widths[1:])
        self.down = nn.ModuleList(
            stage(dims, d, i, o) for d, i, o in zip(DEPTHS, inputs, widths, strict=True)
        )
        self.downsample = nn.ModuleList(
            resample(dims, o, conv(dims, i, o, 2, stride=2)) for i, o in pairwise(widths)
        )
        self.decoder = self.new_decoder(upsampling)

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        return VNetDecoder(self.dims, self.classes, self.widths, upsampling or "transposed")

    def encode(self, x: Tensor, feedback: Sequence[Tensor | None] = (None,) * 5) -> list[Tensor]:
        *upper, bottom = super().encode(x, feedback)
        return [*upper, drop_channels(bottom, self.bottom_dropout) if self.training else bottom]
