"""`crkd train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from crkd_cli.cli.console import command, info, progress, warn
from crkd_cli.cli.options import DataRoot, Device, Quiet, Sets, Verbose
from crkd_cli.methods import METHODS

if TYPE_CHECKING:
    from crkd_cli.training.plan import Plan


class WithMethods(typer.core.TyperCommand):
    """`crkd train`, whose help ends with the methods."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from crkd_cli.cli.about import show_methods

        show_methods()


@command
def train(
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="isic2018, kvasir, acdc, la, phantom, phantom3d, or a set of your own.",
            rich_help_panel="Data",
        ),
    ] = None,
    labeled: Annotated[
        str | None,
        typer.Option(
            "--labeled",
            help="Labeled patients: 4, a share such as 5%, or all.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", help="A split file instead of the one for --labeled.", rich_help_panel="Data"
        ),
    ] = None,
    data_root: DataRoot = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="One of the methods below, or a file of your own: ./my_method.py.",
            metavar="NAME|FILE",
            rich_help_panel="Run",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Configuration file. Default: the data set's packaged one.",
            rich_help_panel="Run",
        ),
    ] = None,
    sets: Sets = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            help="Several runs, one after the other, each in a folder that ends in -seedN: 1337,1338,1339.",
            metavar="N,N,…",
            rich_help_panel="Run",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Run folder. Default: runs/DATASET-METHOD-LABELED.", rich_help_panel="Run"
        ),
    ] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            "--stop-after",
            min=1,
            metavar="STEPS",
            rich_help_panel="Run",
            help="Stop early, after STEPS steps; the schedules remain those of the full run.",
        ),
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a segmentation model on a few labeled and many unlabeled cases.

    The run folder gets checkpoints, the log and the resolved configuration.

    The same command again goes on where a run stopped; a larger --set train.steps= extends a finished one.

    With --stop-after the run ends early, validated and saved; without it, the same command goes on to the end.

    With --seeds the same holds for the whole line: finished runs are passed over, the others go on.

    On several GPUs: torchrun --nproc_per_node=N -m crkd_cli train, with the same options.

    Example: crkd train --dataset la --labeled 4
    """
    info("loading PyTorch")
    from crkd_cli.paths import data_root as root
    from crkd_cli.training.plan import Request, parse_seeds, plan

    if method and method.endswith(".py"):
        method = METHODS.add(Path(method))
    sets = [*(sets or []), *([f"train.device={device}"] if device else [])]
    numbers: list[int | None] = [*parse_seeds(seeds, sets)] if seeds is not None else [None]
    requests = [
        Request(
            dataset, labeled, method, config, split, out, sets, root(data_root), number, stop_after
        )
        for number in numbers
    ]
    for request in requests[1:]:
        plan(request)  # what is wrong with a later run is said before the first one takes its hours
    folders = [_train(plan(request)) for request in requests]
    if seeds is not None:
        info(f"all {len(folders)} runs are done: {' '.join(map(str, folders))}")


def _train(planned: "Plan") -> Path:
    """One run, from where it stands to its end; gives its folder."""
    from crkd_cli import world
    from crkd_cli.reporting.curves import draw_curves
    from crkd_cli.runtime.device import describe
    from crkd_cli.runtime.distributed import Agreement
    from crkd_cli.runtime.metrics_log import write_metrics
    from crkd_cli.training.loop import Stopped
    from crkd_cli.training.loop import train as run_loop
    from crkd_cli.training.start import start

    parts, store, steps = planned.split, planned.store, planned.config.train.steps
    info(
        f"data: {store.root}, split {parts.name}: {len(parts.labeled)} labeled, {len(parts.unlabeled)} unlabeled, "
        f"{len(parts.val)} validation, {len(parts.test)} test"
    )
    info(f"run: {planned.folder}, method {planned.config.method}, configuration {planned.source}")
    if planned.author_settings:
        info(
            f"as its authors set on {planned.store.spec.name}: {', '.join(planned.author_settings)}"
        )
    if planned.finished:
        if planned.resumed and planned.resumed.step < steps:
            info(
                f"this run has done {planned.resumed.step} of {steps} steps; without --stop-after it goes on"
            )
        else:
            info(
                f"this run is finished ({steps} steps); --set train.steps={2 * steps} would extend it"
            )
        if not world.rank():
            _complete(planned)
        return planned.folder
    run = start(planned)
    info(f"device: {describe(run.device, run.precision)}")
    if not run.val:
        info("the split has no validation cases: the last checkpoint is the result")
    done = run.checkpoint.step
    if done:
        info(f"resuming after step {done}")
    with progress("training", planned.stop, "steps", done) as advance:

        def report(step: int, values: dict[str, float]) -> None:
            nonlocal done
            advance(step - done, _line(values) if values else None)
            done = step

        metrics = run_loop(run, report, warn, info)
    if not world.rank():
        write_metrics(planned.folder, metrics)
        if not draw_curves(planned.folder):
            info("curves.png is left out: it needs matplotlib (pip install 'crkd[report]')")
        result = planned.folder / ("best.pth" if metrics["best"] else "last.pth")
        done_steps = (
            "done" if planned.stop == steps else f"stopped after {planned.stop} of {steps} steps"
        )
        info(f"{done_steps}: {result}; next: crkd evaluate {result}")
    if run.signal:
        Agreement().barrier()  # process 0 has written before any process ends
        raise Stopped(run.signal, planned.stop)
    return planned.folder


def _complete(planned: "Plan") -> None:
    """Writes what a finished run lacks: it was killed at its very end, or had no matplotlib."""
    from crkd_cli.reporting.curves import draw_curves
    from crkd_cli.runtime.metrics_log import write_metrics

    metrics = (
        planned.resumed and planned.resumed.training and planned.resumed.training.get("metrics")
    )
    if metrics and not (planned.folder / "metrics.json").is_file():
        write_metrics(planned.folder, metrics)
    if not (planned.folder / "curves.png").is_file():
        draw_curves(planned.folder)


def _line(values: dict[str, float]) -> str:
    """The terms that a person watches, in one line."""
    from crkd_cli.runtime.metrics_log import RATES

    shown = [
        f"{name} {value:.3g}"
        for name, value in values.items()
        if name not in RATES and "/dice/" not in name and not name.startswith("label_share")
    ]
    return "  ".join(shown + ([f"skipped {values['skipped']:.0f}"] if values["skipped"] else []))
