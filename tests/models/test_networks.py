"""Every network in 2D and 3D: shapes, encode → decode → head, published parameter counts."""

import pytest
import torch

from crkd_cli.models.blocks import Dropout, double, drop_channels
from crkd_cli.models.ema import Ema
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Network

WIDTHS = (16, 32, 64, 128, 256)


def build(name: str, dims: int, channels: int = 1, classes: int = 3, widths: tuple[int, ...] = (4, 4, 8, 8, 8)) -> Network:
    torch.manual_seed(0)
    return NETWORKS[name](dims, channels, classes, widths)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_contract(name: str, dims: int) -> None:
    network = build(name, dims, channels=2).eval()
    x = torch.randn(2, 2, *(32, 16, 48)[:dims])
    pyramid = network.encode(x)
    assert [level.shape[1] for level in pyramid] == [4, 4, 8, 8, 8]
    assert [tuple(level.shape[2:]) for level in pyramid] == [tuple(s // 2**i for s in x.shape[2:]) for i in range(5)]
    features = network.decode(pyramid)
    assert features.shape == (2, network.features, *x.shape[2:])
    assert network(x).shape == (2, 3, *x.shape[2:])
    torch.testing.assert_close(network.head(features), network(x))


@pytest.mark.parametrize(("name", "dims", "classes", "published"), [("unet", 2, 4, 1_813_764), ("vnet", 3, 2, 9_448_866)])
def test_parameter_counts(name: str, dims: int, classes: int, published: int) -> None:
    """1,813,764 and 9.45 million: the counts of the field's U-Net and V-Net."""
    network = build(name, dims, classes=classes, widths=WIDTHS)
    assert sum(p.numel() for p in network.parameters()) == published


@pytest.mark.parametrize("name", NETWORKS.names())
def test_every_parameter_learns(name: str, dims: int) -> None:
    network = build(name, dims)
    network(torch.randn(2, 1, *[32] * dims)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_drop_channels_drops_whole_channels_and_keeps_the_mean(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.ones(40, 50, *[3] * dims)
    dropped = drop_channels(x, 0.5).flatten(2)
    assert (dropped == dropped[..., :1]).all()
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)    # 2000 channels: SD of the mean 0.022


def test_drop_channels_with_a_probability_for_every_sample(dims: int) -> None:
    x = torch.ones(3, 50, *[3] * dims)
    dropped = drop_channels(x, torch.tensor([0.0, 0.75, 0.0]))
    assert torch.equal(dropped[::2], x[::2])
    assert set(dropped[1].unique().tolist()) == {0.0, 4.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_elements_and_keeps_the_mean(dims: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layout = (torch.channels_last, torch.channels_last_3d)[dims - 2]
    x = torch.ones(3, 5, *[25] * dims, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    layer = Dropout(0.2)
    y = layer(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    zero = y == 0
    assert y[~zero].unique().tolist() == pytest.approx([1.25], rel=4e-3)
    n = x.numel()
    assert zero.float().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / n) ** 0.5)    # four standard deviations
    by_place = zero.float().mean((0, 1)).flatten()    # no pattern along the axis that lies closest in memory
    assert by_place[::2].mean().item() == pytest.approx(by_place[1::2].mean().item(), abs=6 * (0.16 / n) ** 0.5)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())    # what passed forward passes back, scaled alike
    assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(1)
    first = layer.train()(x)
    torch.manual_seed(1)
    assert torch.equal(first, layer(x))


def test_double_keeps_corners_and_is_linear_between() -> None:
    x = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    expected = torch.tensor([[[[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0], [4.0, 5.0, 6.0, 7.0], [6.0, 7.0, 8.0, 9.0]]]])
    torch.testing.assert_close(double(x), expected)


def test_ema_first_copies_then_averages_parameters_and_buffers() -> None:
    network = torch.nn.BatchNorm1d(1)
    ema = Ema(network, 0.75)
    for step, (weight, mean) in enumerate([(4.0, 2.0), (8.0, 6.0), (8.0, 6.0)]):
        with torch.no_grad():
            network.weight.fill_(weight)
            network.running_mean.fill_(mean)
            network.num_batches_tracked.fill_(step + 1)
        ema.update(network, step)
    # Shares of the new value: 1, then 1/2, then 1/3 (min(1 − 1/(t + 1), 0.75) = 0, 1/2, 2/3).
    assert ema.network.weight.item() == pytest.approx((4 + 8) / 2 * 2 / 3 + 8 / 3)
    assert ema.network.running_mean.item() == pytest.approx((2 + 6) / 2 * 2 / 3 + 6 / 3)
    assert ema.network.num_batches_tracked.item() == 3
    assert not ema.train().network.training
    assert not any(p.requires_grad for p in ema.parameters())
