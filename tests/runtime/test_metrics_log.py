"""log.jsonl: what is damaged is dropped with a warning, and never ends a run."""

from pathlib import Path

import pytest

from crkd_cli.runtime.metrics_log import MetricsLog, read_log

GOOD = [b'{"step": 1, "total": 0.5}', b'{"step": 2, "total": null}', b'{"step": 3, "total": 1}']


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 2, "total" 0.5}',
        b'{"step": 2, "total": 0.\xff5}',
        b"\x00\x01\x80\xfe",
        b"[1, 2]",
        b"3",
        b'{"total": 0.5}',
        b'{"step": "2", "total": 0.5}',
        b'{"step": true}',
        b'{"step": 2, "total": "low"}',
        b'{"step": 2, "total": [[[0.5]]]}',
        b'{"step": 2, "total": NaN}',
        b'{"step": 2, "total": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"step": 2, "total": ' + b"9" * 5000 + b"}",
    ],
    ids=range(15),
)
def test_a_damaged_line_is_dropped(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\n".join([GOOD[0], damage, *GOOD[1:], b'{"step": 4, "tot']))
    warnings: list[str] = []
    MetricsLog(tmp_path, 3, tensorboard=False, warn=warnings.append).write(4, {"total": 2.0})
    assert warnings == [f"{file}: 1 damaged line dropped"]  # the last one was cut short by a kill
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_an_intact_log_is_kept_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"\n".join([*GOOD, b""]))
    warnings: list[str] = []
    MetricsLog(tmp_path, 2, tensorboard=False, warn=warnings.append)
    assert warnings == []
    assert file.read_bytes() == b"\n".join([*GOOD[:2], b""])
