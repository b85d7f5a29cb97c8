"""Sums of which only a few planes are kept, against sums of the whole case."""

import pytest
import torch

from crkd_cli.inference.accumulate import PlaneSums, needed_depth
from crkd_cli.windows import windows

CPU = torch.device("cpu")


@pytest.mark.parametrize("stride", [(2, 3, 2), (3, 5, 4), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_planes_are_the_weighted_mean_of_all_windows(
    stride: tuple[int, ...], batch_size: int
) -> None:
    torch.manual_seed(0)
    shape, patch, classes = (17, 6, 7), (4, 5, 4), 3
    grid = windows(shape, patch, stride)
    batches = [grid[start : start + batch_size] for start in range(0, len(grid), batch_size)]
    weight = torch.rand(patch) + 0.1
    total, weights = torch.zeros(classes, *shape), torch.zeros(shape)
    sums = PlaneSums(classes, shape, needed_depth(batches), CPU)
    taken = []
    for batch in batches:
        taken += [planes.clone() for planes in sums.take(batch[0][0].start)]
        for window in batch:
            probabilities = torch.rand(classes, *patch).softmax(0)
            sums.add(window, probabilities, weight)
            total[(slice(None), *window)] += weight * probabilities
            weights[window] += weight
    taken += [planes.clone() for planes in sums.take(shape[0])]
    torch.testing.assert_close(torch.cat(taken).transpose(0, 1), total / weights)


def test_few_planes_are_kept() -> None:
    grid = windows((600, 100, 100), (32, 50, 50), (16, 25, 25))  # 9 windows on every level
    rows = [grid[start : start + 9] for start in range(0, len(grid), 9)]
    assert needed_depth(rows) == 32
    assert needed_depth([grid[start : start + 10] for start in range(0, len(grid), 10)]) == 48
