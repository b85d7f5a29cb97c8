"""A small run: 8 or more discs (balls), a narrow network, few steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from crkd_cli.data.splits import Split, write
from crkd_cli.engine.start import Plan, Request, plan

Planner = Callable[..., Plan]


@pytest.fixture
def tiny(tmp_path: Path, make_store: Callable[..., object], dims: int) -> Planner:
    """tiny("method=crkd", "train.steps=5", out="a"): a plan over a store of its own, the same store at every call."""
    make_store(groups=10, dims=dims)
    ids = [f"p{number:02d}" for number in range(10)]
    write(
        Split(dataset="toy", name="tiny", train=tuple(ids[:7]), labeled=tuple(ids[:2]), val=(ids[7],), test=tuple(ids[8:])),
        tmp_path / "split.yaml",
    )
    config = tiny_config(dims)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def make(*sets: str, out: str = "run", stop_after: int | None = None) -> Plan:
        request = Request(
            dataset="toy", labeled=None, method=None, config=tmp_path / "config.yaml", split=tmp_path / "split.yaml",
            out=tmp_path / out, sets=list(sets), data_root=tmp_path / "data",
            stop_after=stop_after,
        )  # fmt: skip
        return plan(request)

    return make


def tiny_config(dims: int) -> dict[str, object]:
    frame = {"resize": [32, 32]} if dims == 2 else {"patch": [16, 32, 16]}
    return {
        "data": {"name": "toy", "frame": frame, "labeled": 2, "unlabeled": 2},
        "model": {"name": "unet" if dims == 2 else "vnet", "widths": [4, 4, 8, 8, 8]},
        "train": {"steps": 20, "log_every": 5, "eval_every": 10, "precision": "fp32", "device": "cpu"},
        "method": "crkd",
        "methods": {"crkd": {"confidence": 0.5, "samples": 16}},
    }
