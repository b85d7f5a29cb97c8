"""`crkd prepare-data`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import command, few_of_each_kind, info, plain_text, warn
from crkd_cli.cli.options import DataRoot, Json, Quiet, Verbose, as_typed

if TYPE_CHECKING:
    from types import FrameType

    from crkd_cli.data.report import Finding, PreparationReport
    from crkd_cli.data.sources.base import Source


@command
def prepare_data(
    name: Annotated[
        str,
        typer.Argument(
            help="acdc, la, isic2018, kvasir, phantom, phantom3d, or a name for your own data."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder or archive (zip, tar) with the raw files. Default: raw/NAME in the data "
            "root, else archives in the current folder, else a download.",
            metavar="PATH",
            rich_help_panel="Data",
        ),
    ] = None,
    data_root: DataRoot = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download/--no-download",
            help="If there are no raw files, download those that are public without registration "
            "(isic2018, kvasir).",
            rich_help_panel="Data",
        ),
    ] = True,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Check only: list how each raw file is used, and verify an existing store, "
            "but write nothing.",
            rich_help_panel="Preparation",
        ),
    ] = False,
    spacing: Annotated[
        str | None,
        typer.Option(
            help="Size of a pixel or voxel in mm, for files that do not state it: one number, or "
            "one per axis in the stored order, such as 10,1.5,1.5.",
            metavar="MM",
            rich_help_panel="Preparation",
        ),
    ] = None,
    ignore: Annotated[
        int | None,
        typer.Option(
            help="Label value to ignore, such as 255: its pixels count in no loss or score.",
            metavar="VALUE",
            rich_help_panel="Preparation",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for training, such as 8GB or 500MB: the plan's patches and batches are as "
            "large as fits in it. Default: that of the GPU, else 8GB.",
            metavar="SIZE",
            rich_help_panel="Preparation",
        ),
    ] = None,
    published_crop: Annotated[
        bool,
        typer.Option(
            "--published-crop",
            help="For la from NRRD: crop in plane to the label's bounding box plus a seeded "
            "margin, like the h5 files that published results use.",
            rich_help_panel="Preparation",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes that read the files. Default: one per processor core, fewer if there "
            "is little data or memory.",
            rich_help_panel="Preparation",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check the raw files of a dataset and prepare it for training.

    Example: crkd prepare-data la --source "2018LA_Seg_Training Set"

    Your own data: crkd prepare-data myset --source FOLDER

    FOLDER contains images/ and labels/, 2D or 3D: PNG, JPG, TIFF, BMP, GIF,
    NIfTI, NRRD, MetaImage, h5 or DICOM series. Images without a label are
    unlabeled. The command prints how it reads the files; correct that in
    FOLDER/dataset.yaml.
    """
    from crkd_cli.data.obtain import choose_source, has_files, obtain
    from crkd_cli.data.prepare import prepare
    from crkd_cli.paths import resolve_data_root

    root = resolve_data_root(data_root)
    store = root / "prepared" / name
    if check and source is None and store.is_dir() and not has_files(root / "raw" / name):
        _check_store_alone(name, store, json)
        return
    reader = choose_source(name, source, root, spacing, published_crop, ignore)
    bytes_for_training = _memory(name, reader, memory)
    raw = obtain(name, reader, source, root, download, progress, info)
    info(f"raw files: {raw}")
    with _stopped_by_signals():
        report = prepare(name, reader, raw, store, progress, check, bytes_for_training, workers)
    if json:
        written = None if check or report.failed else str(store)
        _print_json({"name": name, "raw": str(raw), "store": written, **report.tree()})
    elif check:
        print("\n".join(report.inventory.lines()), flush=True)  # before what follows on stderr
    _raise_errors(raw, report)
    _show_report(report, raw, reader)
    if check:
        options = as_typed(
            {
                "--source": source if raw == source else None,
                "--spacing": spacing,
                "--ignore": None if ignore is None else str(ignore),
                "--memory": memory,
                "--workers": None if workers is None else str(workers),
                "--data-root": data_root,
            }
        )
        crop = " --published-crop" if published_crop else ""
        if store.is_dir():
            _check_store(store)
        info(f"no problem found; no store written. Next: crkd prepare-data {name}{options}{crop}")
    else:
        options = as_typed({"--keep": _split_to_keep(report, store), "--data-root": data_root})
        info(f"store: {store}. Next: crkd make-splits {name}{options}")


def _split_to_keep(report: "PreparationReport", store: Path) -> str | None:
    """Return the label count of the last split, whose test part should stay, if labels are new."""
    from crkd_cli.data.splits import newest_split, official_splits

    file = newest_split(store)
    is_new = report.new_content.new_labels or report.new_content.new_images
    return file.stem if file and is_new and official_splits(store.name) is None else None


def _memory(name: str, reader: "Source", given: str | None) -> float | None:
    """Return the bytes of --memory. Raises UsageError if it does not apply."""
    from crkd_cli.data.patch_size import parse_memory
    from crkd_cli.errors import UsageError

    if given is None:
        return None
    if not reader.reads_description:
        raise UsageError(f"--memory is for your own data: {name} is trained as published")
    return parse_memory(given)


def _show_report(report: "PreparationReport", raw: Path, reader: "Source") -> None:
    """Say how the files were read, and what the plan is."""
    from crkd_cli.data.description import to_yaml

    for finding in report.findings:
        info(f"note: {finding.what}")
    if reader.reads_description:
        info(f"description (to change it, save it as {raw / 'dataset.yaml'} and edit it):")
        for line in to_yaml(report.description).splitlines():
            info(f"  {line}")
    for line in (report.spacing, *report.channels, *report.classes):
        if line:
            info(line)
    if report.plan is not None:
        for line in report.plan.lines():
            info(f"plan: {line}")
    info(report.summary)
    if new_content := str(report.new_content):
        info(f"since the last preparation: {new_content}")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: temporary files are removed."""

    def stop(number: int, frame: "FrameType | None") -> None:
        sys.exit(128 + number)

    previous = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows lacks SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
            previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_store_alone(name: str, store: Path, json: bool) -> None:
    """Check a store whose raw files are gone."""
    count = _check_store(store)
    info(f"no raw files of {name}: only the store was checked")
    if json:
        _print_json({"name": name, "raw": None, "store": str(store), "arrays": count})


def _check_store(root: Path) -> int:
    """Compare all arrays of a store with their digests, and return how many there are.

    Raises CrkdError if one differs.
    """
    from crkd_cli.data.store import Store

    store = Store(root)
    count = len(store.index.sha256)
    with progress("verifying", count, "arrays") as advance:
        store.check(advance)
    info(f"store verified: all {count} arrays in {root} match their digests")
    return count


def _raise_errors(raw: Path, report: "PreparationReport") -> None:
    """Show all findings and raise CrkdError if there is an error."""
    from crkd_cli.errors import CrkdError, pluralize

    if report.errors:
        _show(report.findings)
    if report.failure is not None:
        raise report.failure
    if report.errors:
        problems = pluralize(len(report.errors), "problem")
        raise CrkdError(
            f"{problems} in {raw} (see above), nothing was written; correct the files and rerun"
        )


def _print_json(tree: dict[str, object]) -> None:
    import json

    print(json.dumps(tree, indent=2))  # in ASCII, whatever the names contain


def _show(findings: tuple["Finding", ...]) -> None:
    """Print the findings to stderr: a table in a terminal, else one line each."""
    if not sys.stderr.isatty():
        for finding in findings:
            warn(f"{finding.level}: {finding.where}: {finding.what}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "problem", show_lines=False)
    for line in few_of_each_kind((finding.where, finding.what) for finding in findings):
        table.add_row(*map(plain_text, line))
    Console(stderr=True).print(table)
