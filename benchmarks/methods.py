"""What a step of every method costs beside supervised, and beside its networks' passes alone.

python -m benchmarks.methods [--methods crkd,cps] [--data-root DIR] [--out FILE]

A step is taken late in the run, where every term counts: ACDC images at the published size but few of them, LA in small windows.
Passes alone: the step's calls of networks and their parts (encoders, decoders, output layers, a method's own modules), made again
on the same inputs with the same gradients asked for and nothing else.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from benchmarks.run import facts, precision_name
from benchmarks.speed.inputs import Inputs, synthetic
from benchmarks.speed.loops import crkd_steps
from benchmarks.speed.timing import clock, forget_peak, peak_bytes
from crkd_cli.methods import METHODS
from crkd_cli.models.ema import Ema
from crkd_cli.models.networks.base import Decoder, Network
from crkd_cli.paths import atomic_write
from crkd_cli.training.loop import Run

STEPS = 1000  # length of a run that is entered near its end
REPEATS = 7


@dataclass
class Call:
    """One call of a network's part."""

    function: Callable[..., Any]
    arguments: Any  # without history; those that a gradient was asked for say so
    gradient: bool  # whether one was being recorded
    owner: nn.Module
    training: bool

    def again(self) -> None:
        self.owner.train(self.training)
        arguments, named = tree_map(_fresh, self.arguments)
        with torch.set_grad_enabled(self.gradient):
            results = [
                one
                for one in tree_flatten(self.function(*arguments, **named))[0]
                if isinstance(one, Tensor)
            ]
        asked = [one for one in results if one.requires_grad]
        if asked:
            torch.autograd.backward(asked, [torch.ones_like(one) for one in asked])


def _fresh(value: Any) -> Any:
    return (
        value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default=",".join(METHODS.names()), help="default: %(default)s")
    parser.add_argument(
        "--data-root",
        type=Path,
        help="holds prepared/acdc and prepared/la; default: synthetic cases",
    )
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/methods-cpu-MACHINE.json"
    )
    given = parser.parse_args()
    names = ["supervised", *(name for name in given.methods.split(",") if name != "supervised")]
    with tempfile.TemporaryDirectory(prefix="crkd-bench-") as folder:
        scratch = Path(folder)
        inputs = (
            Inputs(given.data_root, scratch, real=True) if given.data_root else synthetic(scratch)
        )
        record = measure(inputs, names, " ".join(["python -m benchmarks.methods", *sys.argv[1:]]))
    out = given.out or Path(__file__).parent / "results" / f"methods-cpu-{precision_name()}.json"
    if given.methods != parser.get_default("methods") and out.is_file():
        record = updated(json.loads(out.read_text(encoding="utf-8")), record)
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(inputs: Inputs, names: list[str], command: str) -> dict[str, Any]:
    """Rows by data set and method; `names` begins with supervised, which the others are divided by."""
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []
    sizes = inputs.sizes
    for dataset, size, batch in (
        ("acdc", sizes.image, sizes.few_images),
        ("la", sizes.training_patch, sizes.patches),
    ):
        for name in names:
            found = cost(inputs.run(dataset, size, batch, name, STEPS))
            rows.append({"dataset": dataset, "method": name, "size": size, "batch": batch, **found})
            base = next(row for row in rows if row["dataset"] == dataset)
            rows[-1] |= {
                f"{what}_relative": rows[-1][what] / base[what]
                for what in ("step_s", "memory_gb")
                if base[what]
            }
            print(f"{time.perf_counter() - begin:5.0f} s  {rows[-1]}", file=sys.stderr, flush=True)
    return {
        **facts(),
        "inputs": inputs.kind,
        "command": command,
        "seconds": time.perf_counter() - begin,
        "rows": rows,
    }


def updated(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A whole measurement with the rows of some methods measured later, each beside the supervised of its own run, and a note."""
    later = {
        (row["dataset"], row["method"]): row for row in new["rows"] if row["method"] != "supervised"
    }
    rows = [later.get((row["dataset"], row["method"]), row) for row in old["rows"]]
    note = (
        f"Some rows were measured later: `{new['command']}`, commit {new['commit']}, {new['date']}."
    )
    return old | {"rows": rows, "note": f"{old.get('note', '')} {note}".strip()}


def cost(run: Run) -> dict[str, Any]:
    """Seconds of a step and of its passes alone, in turn, their ratio, and the peak memory that the step adds.

    The fastest turn of each: a heap that is not yet filled, and what else a machine does, only add to it.
    """
    run.checkpoint = replace(run.checkpoint, step=STEPS - REPEATS - 3)
    run.val = []
    forget_peak()
    before, peak = peak_bytes(), None
    calls: list[Call] = []
    seconds: list[float] = []
    alone: list[float] = []

    def between(taken: float) -> bool:
        nonlocal peak
        seconds.append(taken)
        if len(seconds) == 2:
            peak = peak_bytes()
            record(run, calls)  # the third step: what is kept of it takes memory
        elif len(seconds) == 3:
            forget(run)
            passes(run, calls)
        elif len(seconds) > 3:
            alone.append(clock(lambda: passes(run, calls)))
        return True

    crkd_steps(run, between)
    step, passing = min(seconds[3:]), min(alone)
    return {
        "step_s": step,
        "passes_s": passing,
        "overhead": step / passing,
        "memory_gb": (peak - before) / 1e9 if peak and before else None,
    }


def record(run: Run, calls: list[Call]) -> None:
    """Notes every further call of a network's part in `calls`."""
    for owner, name in _parts(run):
        _note(owner, name, calls)


def forget(run: Run) -> None:
    """Ends `record`."""
    for owner, name in _parts(run):
        delattr(owner, name)


def _parts(run: Run) -> Iterator[tuple[nn.Module, str]]:
    for owner in run.method.modules():
        if isinstance(owner, Network):
            yield owner, "encode"
        elif isinstance(owner, Decoder):
            yield owner, "forward"
            yield owner.output, "forward"
    for child in run.method.children():
        if not isinstance(child, (Network, Decoder, Ema)):
            yield from (
                (part, "forward")
                for part in (child if isinstance(child, nn.ModuleList) else [child])
            )


def _note(owner: nn.Module, name: str, calls: list[Call]) -> None:
    function = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        given = tree_map(_fresh, (list(arguments), named))
        calls.append(Call(function, given, torch.is_grad_enabled(), owner, owner.training))
        return function(*arguments, **named)

    setattr(owner, name, noted)


def passes(run: Run, calls: list[Call]) -> None:
    with _autocast(run):
        for call in calls:
            call.again()
    run.method.zero_grad(set_to_none=False)


def _autocast(run: Run) -> AbstractContextManager[Any]:
    if run.precision == torch.float32:
        return nullcontext()
    return torch.autocast(run.device.type, run.precision)


if __name__ == "__main__":
    main()
