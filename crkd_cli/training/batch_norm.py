"""Batch norm statistics of the network that predicts, taken again from unlabeled training images.

In training a network normalizes by its batches, which hold few labeled patients, strong views and dropped features. The running
statistics of those fit the images that it will see less well than those of plain unlabeled images do.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crkd_cli.data.stream import Stream
from crkd_cli.training.batches import BatchLoader

BATCHES = 16
ORDER = 3  # of the stream: another one than those of training


class BatchNormRecalibration:
    """Renews the statistics of networks from the first batches of the unlabeled images, the same ones each time."""

    def __init__(self, loader: BatchLoader, precision: torch.dtype) -> None:
        """`loader` must have an unlabeled stream; `precision`: that of the forward passes."""
        first = loader.unlabeled[0]
        self._images = Stream(first.dataset, first.size, loader.seed, ORDER)
        self._loader, self._precision = loader, precision

    def statistics(self, network: nn.Module) -> dict[str, Tensor]:
        """The buffers of `network` with renewed statistics, by name; `network` is left alone."""
        network = copy.deepcopy(network)
        self(network)
        return dict(network.named_buffers())

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> None:
        """Set the running mean and variance of every batch norm layer to their means over the batches, without dropout.

        The network stays in evaluation mode, for in training mode the layers of several processes would wait for each other.
        """
        network.eval()
        found: dict[_BatchNorm, list[tuple[Tensor, Tensor]]] = {}

        def normalize_by_batch(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()
            variance, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
            found.setdefault(layer, []).append((mean, variance))
            _set(layer, mean, variance)

        layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        hooks = [layer.register_forward_pre_hook(normalize_by_batch) for layer in layers]
        device, bf16 = self._loader.device, self._precision == torch.bfloat16
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for number in range(BATCHES):
                network(self._loader.images(self._images.batch(number)))
        for hook in hooks:
            hook.remove()
        for layer, batches in found.items():
            means, variances = zip(*batches, strict=True)
            _set(layer, torch.stack(means).mean(0), torch.stack(variances).mean(0))


def _set(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
