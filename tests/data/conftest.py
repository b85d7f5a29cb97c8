"""A fixture that prepares a folder of raw files in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.data.obtain import choose_source
from crkd_cli.data.prepare import prepare
from crkd_cli.data.store import Store


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Store]:
    """prepared("la", folder, published_crop=True) returns the store; errors are failures."""

    def make(
        name: str, raw: Path, spacing: str | None = None, published_crop: bool = False
    ) -> Store:
        root = tmp_path / "data"
        source = choose_source(name, raw, root, spacing, published_crop)
        report = prepare(name, source, raw, root / "prepared" / name, progress)
        if report.failure is not None:
            raise report.failure
        assert not report.errors, report.errors
        return Store(root / "prepared" / name)

    return make
