"""A store that differs from that of the training: what differs is named, and must be accepted."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.changes import describe_changes, fingerprints
from crkd_cli.data.store import Store, write_index
from crkd_cli.errors import UsageError
from crkd_cli.evaluation.evaluate import evaluate


def edit(store: Store, edits: dict[str, dict[str, object]], dropped: tuple[str, ...] = ()) -> Store:
    """Write the index with other facts of some cases, and without the dropped ones."""
    cases = [
        msgspec.structs.replace(case, **edits.get(case.id, {}))
        for case in store.index.cases
        if case.id not in dropped
    ]
    write_index(store.root, msgspec.structs.replace(store.index, cases=tuple(cases)))
    return Store(store.root)


def test_differences_are_counted(make_store: Callable[..., Store]) -> None:
    store = make_store(groups=5)
    before = fingerprints(store)
    assert describe_changes(before, store) == ""
    edits: dict[str, dict[str, object]] = {
        "p00": {"label_sha256": "1" * 64, "spacing_mm": (2.0, 1.0)},
        "p01": {"label_sha256": None},
        "p02": {"sha256": "1" * 64, "group": "p01"},
        "p03": {"source": "elsewhere/p03.png", "intensity": []},
    }
    changed = edit(store, edits, dropped=("p04",))
    assert describe_changes(before, changed) == (
        "1 case is missing, 1 image differs, 2 labels differ, 1 spacing differs, 1 patient differs"
    )
    del before["p00"], before["p01"]
    assert describe_changes(before, store) == "2 cases are new"


def test_other_data_must_be_accepted(
    make_store: Callable[..., Store], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    store = make_store(groups=3)
    file = make_checkpoint(store.spec, Frame(resize=(32, 32)), test=("p00", "p01"))

    def run(*, other_data: bool = False) -> tuple[bool, list[str]]:
        lines: list[str] = []
        root = tmp_path / "data"
        report = evaluate([file], root, lines.append, progress, device="cpu", other_data=other_data)
        return report.facts["other_data"], [line for line in lines if "trained on" in line]

    assert run() == (False, [])
    edit(store, {})  # written again, with the same cases
    assert run() == (False, [])
    edit(store, {"p00": {"label_sha256": "1" * 64}, "p02": {"group": "p01"}})
    changed = f"{store.root} has changed since {file} was trained on it"
    difference = f"{changed}: 1 label differs, 1 patient differs"
    with pytest.raises(UsageError, match=rf"{difference}; add --other-data"):
        run()
    assert run(other_data=True) == (True, [difference])
