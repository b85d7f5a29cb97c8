"""Networks by file name."""

from pathlib import Path

from crkd_cli.models.networks.base import Network
from crkd_cli.registry import Registry

NETWORKS: Registry[Network] = Registry(__name__, Path(__file__).parent, "network")
