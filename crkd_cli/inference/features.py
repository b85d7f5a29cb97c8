"""The deepest features of networks, averaged over a case while it is predicted.

Legend: B windows, F features of the deepest level, *S its spatial axes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crkd_cli.errors import UsageError
from crkd_cli.models.networks.base import Network


class DeepFeatures:
    """Averages what the encoders of `networks` return at their deepest level, for each case.

    The mean of every channel describes an image, as in Yang et al. (2017). It is computed for each
    window, so that a large case needs no more memory than a small one.

    Raises UsageError if a network has no encoder, as that of another package's method may.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        encoders = [
            module
            for network in networks
            for module in network.modules()
            if isinstance(module, Network)
        ]
        if len(encoders) < len(networks):
            raise UsageError("the network has no encoder whose features could be compared")
        self._windows: list[list[Tensor]] = [[] for _ in encoders]
        for means, encoder in zip(self._windows, encoders, strict=True):
            encoder.down[-1].register_forward_hook(_Recorder(means))

    def take(self) -> NDArray[np.float64]:
        """Return the mean features since the last call, of length 1 for each network: [ΣF]."""
        parts = []
        for means in self._windows:
            mean = torch.cat(means).mean(0).double()
            parts.append((mean / mean.norm().clamp_min(1e-12)).cpu().numpy())
            means.clear()
        return np.concatenate(parts)


class _Recorder:
    """Appends the mean over positions of a map [B, F, *S] to a list: [B, F]."""

    def __init__(self, means: list[Tensor]) -> None:
        self._means = means

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._means.append(output.float().flatten(2).mean(2))
