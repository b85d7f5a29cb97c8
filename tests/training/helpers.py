"""What the tests of training share: short runs, their logs and weights, and the command lines."""

import json
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.loop import StepCallback, train
from crkd_cli.training.plan import Plan
from crkd_cli.training.start import start

CHECKOUT = Path(__file__).parents[2]
CPU = torch.device("cpu")
Planner = Callable[..., Plan]


def quiet(step: int, values: dict[str, float]) -> None:
    """A step callback that does nothing."""


def train_plan(plan: Plan, report: StepCallback = quiet) -> dict[str, Any]:
    return train(start(plan), report)


def signal_after(step: int, number: signal.Signals = signal.SIGTERM) -> StepCallback:
    """A step callback that sends the signal to this process after `step` steps."""

    def report(done: int, values: dict[str, float]) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return report


def weights(folder: Path, name: str = "last.pth") -> dict[str, Tensor]:
    return load_checkpoint(folder / name).weights


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    different = [name for name in actual if not torch.equal(actual[name], expected[name])]
    count = f"{len(different)} of {len(actual)}"
    assert not different, f"{count} tensors differ, first {different[:3]}"


def read_lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def logged(folder: Path, name: str) -> dict[int, float]:
    """The logged values called `name`, by step."""
    return {line["step"]: line[name] for line in read_lines(folder) if name in line}


def set_options(settings: Iterable[str]) -> list[str]:
    """["a=1", "b=2"] → ["--set", "a=1", "--set", "b=2"]."""
    return [word for setting in settings for word in ("--set", setting)]


def train_arguments(root: Path, *settings: str, out: str | None = "run") -> list[str]:
    """The arguments of `crkd train` for the store and the files that `tiny` wrote to `root`."""
    options = {
        "--dataset": "toy",
        "--config": root / "config.yaml",
        "--split": root / "split.yaml",
        "--data-root": root / "data",
    }
    if out is not None:
        options["--out"] = root / out
    words = [str(word) for option in options.items() for word in option]
    return ["train", *words, *set_options(settings)]
