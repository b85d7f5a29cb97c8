"""Recalibrated batch norm statistics: against torch's training mode, and where they are used."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from crkd_cli.data.stream import Stream
from crkd_cli.errors import CrkdError
from crkd_cli.models.blocks import Dropout
from crkd_cli.runtime.build import load_method, load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.batch_norm import BATCHES, STREAM, BatchNormRecalibration
from crkd_cli.training.batches import BatchLoader
from crkd_cli.training.loop import train
from crkd_cli.training.start import start
from tests.training.helpers import CPU, Planner, assert_equal, quiet, train_plan


def test_statistics_are_those_of_training_mode_without_dropout(tiny: Planner) -> None:
    run = start(tiny("method=unimatch"))
    network = run.method.student.train()
    has_dropout = any(isinstance(module, Dropout) for module in network.modules())
    assert has_dropout or run.loader.policy.dims == 3
    before = copy.deepcopy(network.state_dict())
    expected = torch_statistics(network, run.loader)
    statistics = BatchNormRecalibration(run.loader, torch.float32).statistics(network)
    for name, value in expected.items():
        atol = 1e-6 if name.endswith("running_var") else 1e-5
        torch.testing.assert_close(statistics[name], value, rtol=1e-4, atol=atol)
    assert_equal(network.state_dict(), before)
    assert network.training


def torch_statistics(network: nn.Module, loader: BatchLoader) -> dict[str, torch.Tensor]:
    """Means and biased variances from batch norm's own training mode, by name."""
    network = copy.deepcopy(network).eval()
    values_per_channel: dict[_BatchNorm, int] = {}

    def count(layer: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        values_per_channel[layer] = inputs[0][:, 0].numel()

    layers = {
        name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)
    }
    for layer in layers.values():
        layer.register_forward_pre_hook(count)
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
        layer.train()
    unlabeled = loader.unlabeled[0]
    stream = Stream(unlabeled.dataset, unlabeled.size, loader.seed, STREAM)
    with torch.no_grad():
        for number in range(BATCHES):
            image, _ = stream.batch(number)
            network(image)
    statistics = {}
    for name, layer in layers.items():
        statistics[f"{name}.running_mean"] = layer.running_mean
        biased = 1 - 1 / values_per_channel[layer]  # torch keeps the unbiased variance
        statistics[f"{name}.running_var"] = layer.running_var * biased
    return statistics


@pytest.mark.parametrize("method", ["crkd", "unimatch"])
def test_checkpoints_predict_with_what_was_validated(tiny: Planner, method: str) -> None:
    """best.pth and last.pth of the same step predict alike; last.pth keeps the trained weights."""
    planned = tiny(f"method={method}", "train.steps=4", "train.eval_every=4")
    run = start(planned)
    train(run, quiet)
    best, last = (load_checkpoint(planned.folder / name) for name in ("best.pth", "last.pth"))
    best_predictor, last_predictor = load_predictor(best, CPU), load_predictor(last, CPU)
    trained_predictor = load_method(last).predictor.eval()
    x = torch.rand(2, 1, *planned.config.data.frame.size)
    with torch.no_grad():
        assert torch.equal(best_predictor(x), last_predictor(x))
        assert not torch.allclose(trained_predictor(x), last_predictor(x), atol=1e-4)
    assert_equal(last.weights, run.method.state_dict())


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(("method", "recalibrate"), [("supervised", "true"), ("unimatch", "false")])
def test_no_recalibration_without_unlabeled_images_or_where_it_is_off(
    tiny: Planner, method: str, recalibrate: str
) -> None:
    planned = tiny(
        f"method={method}",
        f"train.recalibrate_batch_norm={recalibrate}",
        "train.steps=4",
        "train.eval_every=4",
    )
    train_plan(planned)
    best, last = (load_checkpoint(planned.folder / name) for name in ("best.pth", "last.pth"))
    assert last.statistics is None
    assert_equal(best.weights, last.weights)


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_statistics_of_another_network_are_damage(tiny: Planner) -> None:
    planned = tiny("train.steps=2")
    train_plan(planned)
    last = load_checkpoint(planned.folder / "last.pth")
    foreign = {"down.0.1.running_mean": torch.zeros(3)}
    with pytest.raises(CrkdError, match="does not fit its own configuration"):
        load_predictor(replace(last, statistics=foreign), CPU)
