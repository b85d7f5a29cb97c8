"""Every network in 2D and 3D: shapes, encode → decode → head, published parameter counts."""

import copy
from functools import partial
from typing import get_args

import pytest
import torch

from crkd_cli.config import Frame, Strides
from crkd_cli.models import blocks
from crkd_cli.models.blocks import Dropout, append_dropped, conv, drop_channels, interpolation
from crkd_cli.models.ema import Ema
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Network, Upsampling
from crkd_cli.runtime.device import channels_last

# Of those for any images; the other one has a file of tests.
every_network = pytest.mark.parametrize("name", ["unet", "vnet"])
WIDTHS = (16, 32, 64, 128, 256)


def build(
    name: str,
    dims: int,
    channels: int = 1,
    classes: int = 3,
    widths: tuple[int, ...] = (4, 4, 8, 8, 8),
    strides: Strides | None = None,
) -> Network:
    torch.manual_seed(0)
    return NETWORKS[name](dims, channels, classes, widths, strides=strides)


# Sizes of a frame and what they are divided by at the five levels.
FRAMES = {
    (32, 16): [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16)],
    (40, 48): [(1, 1), (1, 2), (2, 4), (4, 8), (8, 16)],
    (20, 12): [(1, 1), (2, 2), (4, 4), (4, 4), (4, 4)],
    (32, 16, 48): [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)],
    (12, 32, 40): [(1, 1, 1), (1, 2, 1), (1, 4, 2), (2, 8, 4), (4, 16, 8)],
    (8, 12, 24): [(1, 1, 1), (2, 1, 2), (4, 2, 4), (8, 4, 8), (8, 4, 8)],
}
every_frame = pytest.mark.parametrize("size", FRAMES, ids=str)


@every_frame
@every_network
def test_contract(name: str, size: tuple[int, ...]) -> None:
    network = build(name, len(size), channels=2, strides=Frame(patch=size).strides).eval()
    x = torch.randn(2, 2, *size)
    pyramid = network.encode(x)
    assert [level.shape[1] for level in pyramid] == [4, 4, 8, 8, 8]
    for level, divisors in zip(pyramid, FRAMES[size], strict=True):
        expected = [side // divisor for side, divisor in zip(size, divisors, strict=True)]
        assert list(level.shape[2:]) == expected
    features = network.decode(pyramid)
    assert features.shape == (2, network.features, *x.shape[2:])
    assert network(x).shape == (2, 3, *x.shape[2:])
    torch.testing.assert_close(network.head(features), network(x))


@pytest.mark.parametrize("upsampling", get_args(Upsampling))
@pytest.mark.parametrize("size", [(32, 16), (20, 48), (32, 16, 16), (12, 24, 16)], ids=str)
@every_network
def test_another_decoder(name: str, size: tuple[int, ...], upsampling: Upsampling) -> None:
    """It decodes the same levels, returns its stages, and has the usual weights."""
    dims, strides = len(size), Frame(patch=size).strides
    network = build(name, dims, strides=strides).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    decoder = network.new_decoder(upsampling).eval()
    pyramid = network.encode(torch.randn(2, 1, *size))
    stages: list[torch.Tensor] = []
    features = decoder(pyramid, stages)
    assert stages[0] is pyramid[-1]
    assert [stage.shape for stage in stages] == [level.shape for level in reversed(pyramid)]
    x = pyramid[-1]
    for number, level in enumerate(reversed(pyramid[:-1])):
        upsampled = decoder.upsample[number](x)
        torch.testing.assert_close(upsampled, stages[number + 1])
        merged = torch.cat([level, upsampled], dim=1) if name == "unet" else level + upsampled
        x = decoder.fuse[number](merged)
    torch.testing.assert_close(features, x)
    assert torch.equal(decoder(pyramid), features)
    assert decoder.head(features).shape == network(torch.randn(2, 1, *size)).shape
    decoder.head(features).square().mean().backward()
    assert all(p.grad is not None for p in decoder.parameters())
    assert all(p.grad is None for p in network.decoder.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    same = NETWORKS[name](dims, 1, 3, (4, 4, 8, 8, 8), upsampling, strides=strides).decoder
    assert shapes(same) == shapes(decoder)


def shapes(module: torch.nn.Module) -> list[tuple[str, torch.Size]]:
    return [(key, value.shape) for key, value in module.state_dict().items()]


@pytest.mark.parametrize(("name", "default"), [("unet", "linear"), ("vnet", "transposed")])
def test_default_upsampling(name: str, default: Upsampling) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](2, 1, 3, (4, 4, 8, 8, 8), default)
    for a, b in zip(network.parameters(), build(name, 2).parameters(), strict=True):
        assert torch.equal(a, b)


@every_network
def test_feedback_is_added_to_every_level_before_the_next(name: str, dims: int) -> None:
    network = build(name, dims).eval()
    x = torch.randn(2, 1, *(32, 16, 48)[:dims])
    plain = network.encode(x)
    feedback = [torch.randn_like(level) for level in plain]
    below = network.downsample[0](plain[0] + feedback[0])
    expected = [plain[0] + feedback[0], network.down[1](below) + feedback[1]]
    for level, downsample, added in zip(
        network.down[2:], network.downsample[1:], feedback[2:], strict=True
    ):
        expected.append(level(downsample(expected[-1])) + added)
    for actual, level in zip(network.encode(x, feedback), expected, strict=True):
        torch.testing.assert_close(actual, level)
    *upper, bottom = network.encode(x, (None, None, None, None, feedback[4]))
    assert all(torch.equal(a, b) for a, b in zip(upper, plain[:4], strict=True))
    torch.testing.assert_close(bottom, plain[4] + feedback[4])


@every_network
def test_dropout_at_the_bottom(name: str) -> None:
    """The other levels keep their rates. V-Net drops whole channels after adding the feedback."""
    torch.manual_seed(0)
    network = NETWORKS[name](2, 1, 2, (2, 2, 2, 2, 400), bottom_dropout=0.3)
    if name == "unet":
        rates = [module.p for module in network.down.modules() if isinstance(module, Dropout)]
        assert rates == [0.05, 0.1, 0.2, 0.3, 0.3]
        return
    feedback = torch.full((1, 400, 2, 2), 1e6)
    pyramid = network.encode(torch.rand(1, 1, 32, 32), (None, None, None, None, feedback))
    bottom = pyramid[-1].flatten(2)
    dropped = (bottom == 0).all(2)
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 400) ** 0.5)
    kept = bottom[~dropped]
    torch.testing.assert_close(kept, torch.full_like(kept, 1e6 / 0.7), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "dims", "classes", "published"), [("unet", 2, 4, 1_813_764), ("vnet", 3, 2, 9_448_866)]
)
def test_parameter_counts(name: str, dims: int, classes: int, published: int) -> None:
    """The counts of the U-Net and V-Net that the field compares with."""
    network = build(name, dims, classes=classes, widths=WIDTHS)
    assert sum(p.numel() for p in network.parameters()) == published


@every_network
def test_every_parameter_gets_a_gradient(name: str, dims: int) -> None:
    network = build(name, dims)
    network(torch.randn(2, 1, *[32] * dims)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_drop_channels_drops_whole_channels_and_keeps_the_mean(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.ones(40, 50, *[3] * dims)
    dropped = drop_channels(x, 0.5).flatten(2)
    assert (dropped == dropped[..., :1]).all()
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    # For 2,000 channels, the standard deviation of the mean is 0.022.
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)


def test_drop_channels_with_one_rate_per_sample(dims: int) -> None:
    x = torch.ones(3, 50, *[3] * dims)
    dropped = drop_channels(x, torch.tensor([0.0, 0.75, 0.0]))
    assert torch.equal(dropped[::2], x[::2])
    assert set(dropped[1].unique().tolist()) == {0.0, 4.0}


def test_append_dropped_concatenates_what_drop_channels_returns(dims: int) -> None:
    x = torch.rand(4, 3, *[2] * dims, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(8, 3, *[2] * dims, dtype=torch.float64)
    results = []
    for joined in (
        lambda: append_dropped(x, 2, (0.25, 0.75)),
        lambda: torch.cat([x, drop_channels(x[2:], 0.25), drop_channels(x[2:], 0.75)]),
    ):
        torch.manual_seed(0)
        y = joined()
        results.append((y, *torch.autograd.grad((weight * y).sum(), x)))
    (y, gradient), (expected, expected_gradient) = results
    assert torch.equal(y, expected)
    torch.testing.assert_close(gradient, expected_gradient)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return append_dropped(x, 1, (0.5,))

    assert torch.autograd.gradcheck(seeded, x)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_linear_upsampling_has_the_gradient_of_torch(
    dims: int, stride: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a map that is a part of a concatenation, in one piece and sample by sample."""
    stride = stride[:dims]
    layer = interpolation(stride, "linear")
    x = torch.rand(3, 2, *(4, 3, 1)[:dims], dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.interpolate(
        x, scale_factor=stride, mode=("bilinear", "trilinear")[dims - 2], align_corners=True
    )
    assert torch.equal(layer(x), y)
    weight = torch.rand(3, 4, *y.shape[2:], dtype=torch.float64)[:, 1:3]
    (expected,) = torch.autograd.grad(y, x, weight)
    for cached in (2**20, 1):
        monkeypatch.setattr(blocks, "_CACHED", cached)
        torch.testing.assert_close(torch.autograd.grad(layer(x), x, weight)[0], expected)
        assert torch.autograd.gradcheck(layer, x)

    single = x.detach().bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(single), single, weight.bfloat16())
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), expected, rtol=0.01, atol=0.01)


def test_pointwise_convolution_keeps_the_layout_and_is_that_of_torch(
    dims: int, request: pytest.FixtureRequest
) -> None:
    """On one thread, for which torch alone would change the layout."""
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)
    layer, layout = conv(dims, 4, 3, 1), channels_last(dims)
    reference = (torch.nn.Conv2d, torch.nn.Conv3d)[dims - 2](4, 3, 1)
    reference.load_state_dict(layer.state_dict())
    x = torch.rand(3, 4, *[6] * dims).contiguous(memory_format=layout).requires_grad_()
    weight = torch.rand(3, 3, *[6] * dims)
    results = []
    for module in (layer, reference):
        y = module(x)
        results.append((y, *torch.autograd.grad(y, [x, *module.parameters()], weight)))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].is_contiguous(memory_format=layout)
    assert results[0][1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_elements_and_keeps_the_mean(dims: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layout = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    x = torch.ones(3, 5, *[25] * dims, dtype=dtype).contiguous(memory_format=layout)
    x.requires_grad_()
    layer = Dropout(0.2)
    y = layer(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    zero = y == 0
    assert y[~zero].unique().tolist() == pytest.approx([1.25], rel=4e-3)
    deviation = (0.16 / x.numel()) ** 0.5
    assert zero.float().mean().item() == pytest.approx(0.2, abs=4 * deviation)
    # No pattern along the axis that is contiguous in memory.
    rates = zero.float().mean((0, 1)).flatten()
    even, odd = rates[::2].mean().item(), rates[1::2].mean().item()
    assert even == pytest.approx(odd, abs=6 * deviation)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the gradient has the same mask and scale
    assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(1)
    first = layer.train()(x)
    torch.manual_seed(1)
    assert torch.equal(first, layer(x))


def test_upsampling_keeps_corners_and_is_linear_between() -> None:
    x = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    rows = [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0], [6.0, 7.0, 8.0, 9.0]]
    torch.testing.assert_close(interpolation((2, 2), "linear")(x), torch.tensor([[rows]]))


def test_ema_copies_at_first_and_then_averages_weights() -> None:
    network = torch.nn.Linear(1, 1)
    ema = Ema(network, 0.75, dropout=False)
    for step, weight in enumerate([4.0, 8.0, 8.0]):
        with torch.no_grad():
            network.weight.fill_(weight)
        ema.update(network, step)
    # Weight of the new value: 1, 1/2, 1/3, since min(1 − 1/(t + 1), 0.75) = 0, 1/2, 2/3.
    assert ema.network.weight.item() == pytest.approx((4 + 8) / 2 * 2 / 3 + 8 / 3)
    assert not any(p.requires_grad for p in ema.parameters())


@pytest.mark.parametrize("dropout", [True, False])
def test_ema_normalizes_by_the_batch_and_has_its_own_statistics(dropout: bool) -> None:
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(1), Dropout(0.5))
    ema = Ema(network, 0.75, dropout=dropout)
    with torch.no_grad():
        network[0].running_mean.fill_(7.0)
    ema.update(network, 0)
    assert ema.network[0].running_mean.item() == 0.0
    x = torch.tensor([[1.0], [3.0]] * 100)
    y = ema.train().network(x)
    assert ema.network[0].running_mean.item() == pytest.approx(0.1 * 2.0)
    assert (y == 0.0).any().item() == dropout
    if not dropout:
        torch.testing.assert_close(y, x - 2.0, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        expected = (x - 0.2) / ema.network[0].running_var.sqrt()
        torch.testing.assert_close(ema.eval().network(x), expected, rtol=1e-4, atol=1e-4)


def constant(value: float) -> torch.nn.Module:
    network = torch.nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(value)
    return network


def test_ema_follows_the_network_that_it_is_called_with() -> None:
    """Even if networks were converted or copied since the last update."""
    first, second = constant(2.0), constant(6.0)
    ema = Ema(first, 1.0, dropout=False)
    ema.update(first, 1)
    ema.update(second, 1)  # halfway
    assert ema.network.weight.item() == 4.0
    ema.double()
    second.double()
    ema.update(second, 1)
    assert ema.network.weight.item() == 5.0
    copied = copy.deepcopy(ema)
    copied.update(second, 0)
    assert copied.network.weight.item() == 6.0
    assert ema.network.weight.item() == 5.0
