"""The projection head of the class-semantic distillation."""

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """Three pointwise layers, with batch norm and ReLU after the first two, and unit-length output.

    Works on rows of sampled features: projecting every pixel first would give the same rows.
    """

    def __init__(self, features: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Project rows [N, F] to unit vectors [N, width] in float32."""
        projected: Tensor = self.layers(rows)
        return F.normalize(projected.float(), dim=1)
