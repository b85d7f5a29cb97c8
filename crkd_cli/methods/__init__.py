"""Methods by name: the files here, those of other packages (entry points `crkd.methods`), a user's own file."""

from pathlib import Path
from typing import TYPE_CHECKING

from crkd_cli.registry import Registry

if TYPE_CHECKING:  # the names alone, for --help, cost no torch
    from crkd_cli.methods.base import Method

METHODS: "Registry[Method]" = Registry(
    __name__, Path(__file__).parent, "method", group="crkd.methods"
)
