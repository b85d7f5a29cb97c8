"""From a configuration or a checkpoint to a method or its predictor."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from crkd_cli.config import Config, dump, parse
from crkd_cli.data.store import DatasetSpec
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.methods import METHODS
from crkd_cli.methods.base import Method, Task
from crkd_cli.models.networks import NETWORKS
from crkd_cli.runtime.checkpoint import Checkpoint, UserMethod
from crkd_cli.runtime.device import to_channels_last
from crkd_cli.runtime.user_method import attribute_errors, check_declaration


def build_method(config: Config, spec: DatasetSpec, *, pretrained: bool = True) -> Method:
    """Build the method with freshly initialized networks, the same for the same seed.

    With `pretrained`, networks that have pretrained weights start from those. Raises UsageError.
    """
    method_class = METHODS[config.method]
    section = f"methods.{config.method}"
    params = parse(config.methods.get(config.method, {}), method_class.Params, section)
    parse(dump(params), method_class.Params, section)  # msgspec does not check defaults
    task = replace(_task(config, spec), pretrained=pretrained)
    torch.manual_seed(config.train.seed)
    with attribute_errors(check_declaration(method_class)):
        return to_channels_last(method_class(task, params), task.dims)


def load_method(checkpoint: Checkpoint) -> Method:
    """Build the method of a checkpoint. Raises CrkdError if the weights are not this method's."""
    method = build_method(checkpoint.config, checkpoint.spec, pretrained=False)
    _load_weights(method, checkpoint.weights, checkpoint.path)
    return method


def load_predictor(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """Build the network that predicts, in evaluation mode on `device`.

    It maps images [B, C, *S] (8-bit images divided by 255) to logits [B, K, *S]. A method from a
    user's file is not run: its predictor is a network of this package.
    """
    if checkpoint.user_method is None:
        network = load_method(checkpoint).predictor
    else:
        prefix = f"{checkpoint.user_method.predictor}."
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint.weights.items()
            if name.startswith(prefix)
        }
        task = _task(checkpoint.config, checkpoint.spec)
        network = to_channels_last(task.network(), task.dims)
        _load_weights(network, weights, checkpoint.path)
    if checkpoint.statistics is not None:
        weights = {**network.state_dict(), **checkpoint.statistics}
        _load_weights(network, weights, checkpoint.path)
    return network.to(device).eval()


def describe_user_method(name: str, method: Method) -> UserMethod | None:
    """Return what a checkpoint records of a method from a user's file; None for an installed one.

    Raises UsageError if the predictor is not a network of this package, because then nothing could
    predict without the file.
    """
    digest = user_method_digest(name)
    if digest is None:
        return None
    with torch.device("meta"):
        expected = repr(replace(method.task, pretrained=False).network())
    for name_in_method, module in method.named_modules():
        if module is method.predictor and repr(module) == expected:
            return UserMethod(sha256=digest, predictor=name_in_method)
    raise UsageError(
        f"method {name} predicts with a network that self.task.network() does not make, which only "
        "a method of an installed package can do; see docs/adding-a-method.md"
    )


def user_method_digest(name: str) -> str | None:
    """Return the SHA-256 of the file that method `name` comes from; None for an installed one."""
    source = METHODS.source(name)
    return None if source is None else sha256(source).hexdigest()


def _task(config: Config, spec: DatasetSpec) -> Task:
    name = config.model.name
    if NETWORKS[name].color_only and not spec.is_color:
        raise UsageError(
            f"model.name {name} is for 2D color images, which {spec.name} does not contain; use "
            "--set model.name=unet, or vnet"
        )
    return Task(
        model=config.model,
        dims=config.data.frame.dims,
        channels=spec.channel_count,
        classes=len(spec.classes),
        steps=config.train.steps,
        has_ignored=spec.ignore is not None,
        strides=config.data.frame.strides,
    )


def _load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        problem = str(error).splitlines()[0]
        raise CrkdError(
            f"{path} does not fit its own configuration ({problem}); it is damaged"
        ) from None
