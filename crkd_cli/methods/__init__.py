"""Methods by file name."""

from pathlib import Path

from crkd_cli.methods.base import Method
from crkd_cli.registry import Registry

METHODS: Registry[Method] = Registry(__name__, Path(__file__).parent, "method")
