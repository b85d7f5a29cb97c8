"""Data sources: one file per raw layout, named like the dataset."""

from pathlib import Path

from crkd_cli.data.sources.base import Source
from crkd_cli.registry import Registry

SOURCES: Registry[Source] = Registry("crkd_cli.data.sources", Path(__file__).parent, "data source")
