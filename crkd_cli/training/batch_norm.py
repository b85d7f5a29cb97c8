"""Recomputes the predictor's batch norm statistics from unlabeled training images.

During training a network normalizes by its batches: few labeled patients, strong views and dropped
features. Their running statistics fit the images that it will predict on less well than those of
plain unlabeled images do.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crkd_cli.data.stream import Stream
from crkd_cli.training.batches import BatchLoader

BATCHES = 16
STREAM = 3  # the number of the stream, which training does not use

LayerStatistics = dict[_BatchNorm, list[tuple[Tensor, Tensor]]]


class BatchNormRecalibration:
    """Recomputes statistics from the first batches of the unlabeled images, always the same ones.

    `loader` must have an unlabeled stream; `precision` is that of the forward passes.
    """

    def __init__(self, loader: BatchLoader, precision: torch.dtype) -> None:
        unlabeled = loader.unlabeled[0]
        self._stream = Stream(unlabeled.dataset, unlabeled.size, loader.seed, STREAM)
        self._loader, self._precision = loader, precision

    def statistics(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the buffers of `network`, by name, with recomputed statistics.

        `network` itself does not change.
        """
        network = copy.deepcopy(network)
        self(network)
        return dict(network.named_buffers())

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> None:
        """Set each running mean and variance of `network` to its average over the batches.

        Dropout is off. The network stays in evaluation mode because in training mode the layers
        of several processes would wait for each other.
        """
        network.eval()
        bf16 = self._precision == torch.bfloat16
        autocast = torch.autocast(self._loader.device.type, torch.bfloat16, enabled=bf16)
        with _normalizing_by_batch(network) as statistics, autocast:
            for number in range(BATCHES):
                network(self._loader.images(self._stream.batch(number)))
        for layer, batches in statistics.items():
            means, variances = zip(*batches, strict=True)
            _set_statistics(layer, torch.stack(means).mean(0), torch.stack(variances).mean(0))


@contextmanager
def _normalizing_by_batch(network: nn.Module) -> Iterator[LayerStatistics]:
    """Normalize by the batch in evaluation mode; yields what is used: (mean, biased variance)."""
    statistics: LayerStatistics = defaultdict(list)

    def use_batch_statistics(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].float()
        axes = (0, *range(2, x.ndim))
        variance, mean = torch.var_mean(x, axes, correction=0)
        statistics[layer].append((mean, variance))
        _set_statistics(layer, mean, variance)

    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(use_batch_statistics) for layer in layers]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


def _set_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
