"""Statistics of batch norm from unlabeled images: against batch norm's own training mode, and where they are used."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from crkd_cli.data.stream import Stream
from crkd_cli.errors import CrkdError
from crkd_cli.models.blocks import Dropout
from crkd_cli.runtime.build import load_method, load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.batch_norm import BATCHES, STREAM, BatchNormRecalibration
from crkd_cli.training.loop import train
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start

Planner = Callable[..., Plan]
CPU = torch.device("cpu")


def norms(network: torch.nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def test_renewed_statistics_are_those_of_training_mode_without_dropout(tiny: Planner) -> None:
    run = start(tiny("method=unimatch"))
    first = run.loader.unlabeled[0]
    batches = [
        Stream(first.dataset, first.size, run.loader.seed, STREAM).batch(number)
        for number in range(BATCHES)
    ]
    network, expected = run.method.student.train(), copy.deepcopy(run.method.student).eval()
    before = copy.deepcopy(network.state_dict())
    values: dict[_BatchNorm, int] = {}  # a channel's in a batch
    for layer in norms(expected):
        layer.register_forward_pre_hook(lambda layer, x: values.update({layer: x[0][:, 0].numel()}))
        layer.reset_running_stats()
        layer.momentum = None  # torch's own mean over batches
        layer.train()
    with torch.no_grad():
        for image, _ in batches:
            expected(image)
    found = BatchNormRecalibration(run.loader, torch.float32).statistics(network)
    for name, layer in expected.named_modules():
        if isinstance(layer, _BatchNorm):
            torch.testing.assert_close(
                found[f"{name}.running_mean"], layer.running_mean, rtol=1e-4, atol=1e-5
            )
            biased = layer.running_var * (
                1 - 1 / values[layer]
            )  # torch keeps the unbiased variance
            torch.testing.assert_close(found[f"{name}.running_var"], biased, rtol=1e-4, atol=1e-6)
    assert all(
        torch.equal(value, before[name]) for name, value in network.state_dict().items()
    )  # left alone
    assert network.training
    assert (
        any(isinstance(module, Dropout) for module in network.modules())
        or run.loader.policy.dims == 3
    )


@pytest.mark.parametrize("method", ["crkd", "unimatch"])
def test_what_was_validated_is_what_the_checkpoints_predict_with(
    tiny: Planner, method: str
) -> None:
    """best.pth and last.pth of the same step are the same model; last.pth keeps the trained statistics to go on with."""
    planned = tiny(f"method={method}", "train.steps=4", "train.eval_every=4")
    run = start(planned)
    train(run, lambda step, values: None)
    best, last = (load_checkpoint(planned.folder / name) for name in ("best.pth", "last.pth"))
    one, two = load_predictor(best, CPU), load_predictor(last, CPU)
    x = torch.rand(2, 1, *planned.config.data.frame.size)
    with torch.no_grad():
        assert torch.equal(one(x), two(x))
        assert not torch.allclose(load_method(last).predictor.eval()(x), two(x), atol=1e-4)
    assert all(
        torch.equal(value, run.method.state_dict()[name]) for name, value in last.weights.items()
    )


@pytest.mark.parametrize("dims", [2], indirect=True)
@pytest.mark.parametrize(("method", "predictor"), [("supervised", "true"), ("unimatch", "false")])
def test_the_baseline_never_sees_unlabeled_images_and_others_need_not(
    tiny: Planner, method: str, predictor: str
) -> None:
    planned = tiny(
        f"method={method}",
        f"train.recalibrate_batch_norm={predictor}",
        "train.steps=4",
        "train.eval_every=4",
    )
    train(start(planned), lambda step, values: None)
    best, last = (load_checkpoint(planned.folder / name) for name in ("best.pth", "last.pth"))
    assert last.statistics is None
    assert all(torch.equal(value, best.weights[name]) for name, value in last.weights.items())


@pytest.mark.parametrize("dims", [2], indirect=True)
def test_statistics_of_another_network_are_damage(tiny: Planner) -> None:
    planned = tiny("train.steps=2")
    train(start(planned), lambda step, values: None)
    last = load_checkpoint(planned.folder / "last.pth")
    with pytest.raises(CrkdError, match="does not fit its own configuration"):
        load_predictor(replace(last, statistics={"down.0.1.running_mean": torch.zeros(3)}), CPU)
