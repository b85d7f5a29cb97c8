"""Networks with batch norm fused into their convolutions against the originals, in 2D and 3D."""

import copy
from typing import get_args

import pytest
import torch
from torch import nn

from crkd_cli.config import Frame, TrainConfig
from crkd_cli.models.fusion import fuse_for_inference
from crkd_cli.models.networks import NETWORKS
from crkd_cli.models.networks.base import Upsampling
from crkd_cli.training.optimizer import GuardedOptimizer

# Of those for any images; the other one has a file of tests.
every_network = pytest.mark.parametrize("name", ["unet", "vnet"])
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def randomize_batch_norm(network: nn.Module) -> nn.Module:
    """Randomize the batch norms of `network`, as after training."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, NORMS):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
    return network


@pytest.fixture(params=["onednn", "elsewhere"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Fuse for oneDNN, or as on a GPU or a CPU without it."""
    onednn = torch.backends.mkldnn
    if request.param == "elsewhere":
        monkeypatch.setattr(onednn, "is_available", lambda: False)
    elif not (onednn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("oneDNN does not support bf16 on this CPU")
    return request.param


@torch.no_grad()
def bf16_error(network: nn.Module, x: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the mean absolute error of `network` under bf16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return float((network(x).double() - exact).abs().mean())


@pytest.mark.slow
@every_network
def test_bf16_is_as_accurate_as_autocast(name: str, dims: int, backend: str) -> None:
    torch.manual_seed(0)
    network = randomize_batch_norm(NETWORKS[name](dims, 1, 2, (8, 8, 16, 16, 16))).eval()
    x = torch.randn(2, 1, *(64, 48, 32)[:dims])
    exact = copy.deepcopy(network).double()(x.double()).detach()
    fast = fuse_for_inference(network, torch.bfloat16)
    assert {p.dtype for p in fast.decoder.output.parameters()} == {torch.bfloat16}
    error = bf16_error(fast, x, exact)
    limit = {"onednn": 1.0, "elsewhere": 1.2}[backend]
    assert error < limit * bf16_error(network, x, exact)
    assert error < 0.03 * float(exact.std())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_only_the_network_is_copied(dims: int, precision: torch.dtype) -> None:
    """Not the buffers of the whole method, such as a memory bank."""
    method = nn.ModuleDict({"student": NETWORKS["unet"](dims, 1, 2, (4, 4, 8, 8, 8))})
    method.register_buffer("bank", torch.zeros(100_000))
    GuardedOptimizer(method, TrainConfig(steps=1))
    fast = fuse_for_inference(method["student"], precision)
    assert all(buffer.untyped_storage().nbytes() <= buffer.nbytes for buffer in fast.buffers())


@pytest.mark.parametrize("upsampling", get_args(Upsampling))
@pytest.mark.parametrize("size", [(32, 16), (20, 48), (32, 16, 16), (8, 12, 24)], ids=str)
@every_network
def test_predictions_are_unchanged(
    name: str, size: tuple[int, ...], upsampling: Upsampling
) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](
        len(size), 2, 3, (4, 4, 8, 8, 8), upsampling, strides=Frame(patch=size).strides
    )
    network = randomize_batch_norm(network).double()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast = fuse_for_inference(network)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    assert not any(isinstance(module, NORMS) for module in fast.modules())
    assert network.training
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    exact = network.eval()(x).detach()
    torch.testing.assert_close(fast(x), exact)
    in_fp32 = fuse_for_inference(network.float())(x.float())
    torch.testing.assert_close(in_fp32.double(), exact, rtol=0, atol=1e-4 * float(exact.std()))


def test_other_layers_are_unchanged() -> None:
    """Batch norms that do not follow a convolution, and one without running statistics."""
    tracking = [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)]
    network = randomize_batch_norm(nn.Sequential(*tracking, nn.Conv2d(3, 3, 1)))
    network.append(nn.BatchNorm2d(3, track_running_stats=False))
    fast = fuse_for_inference(network)
    assert [type(layer) for layer in fast] == [type(layer) for layer in network]
    x = torch.randn(2, 2, 5, 4)
    torch.testing.assert_close(fast(x), network.eval()(x))
