"""Methods by name: those in this folder, in installed packages and in files of the user.

Packages announce theirs as entry points in the group `crkd.methods`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from crkd_cli.registry import Registry

if TYPE_CHECKING:  # --help lists the names without importing torch
    from crkd_cli.methods.base import Method

METHODS: "Registry[Method]" = Registry(
    __name__, Path(__file__).parent, "method", group="crkd.methods"
)
