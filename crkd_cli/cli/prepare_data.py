"""crkd prepare-data: raw files in, a checked, memory-mapped store out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crkd_cli.cli import console
from crkd_cli.cli.options import DataRoot, Quiet, Verbose

if TYPE_CHECKING:
    from crkd_cli.data.prepare import Finding
    from crkd_cli.data.store import Index


@console.command
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
            help="Folder or archive (zip, tar) with the raw files. Default: raw/NAME under the data root, "
            "else archives in this folder, else a download.",
            metavar="PATH",
            rich_help_panel="Data",
        ),
    ] = None,
    data_root: DataRoot = None,
    download: Annotated[
        bool,
        typer.Option(
            "--download/--no-download",
            help="Download what is public without registration "
            "(isic2018, kvasir) if nothing is there.",
            rich_help_panel="Data",
        ),
    ] = True,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only check the raw files: no store is written.",
            rich_help_panel="Preparation",
        ),
    ] = False,
    spacing: Annotated[
        str | None,
        typer.Option(
            help="Size of a pixel or voxel in mm where the files do not say: one number, or one per axis in "
            "the stored order: 10,1.5,1.5.",
            metavar="MM",
            rich_help_panel="Preparation",
        ),
    ] = None,
    published_crop: Annotated[
        bool,
        typer.Option(
            "--published-crop",
            help="la from NRRD: crop in plane to the label's box plus a seeded margin, "
            "as the h5 files that published results use.",
            rich_help_panel="Preparation",
        ),
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the raw files of a data set, check them, and write the prepared store that training reads.

    Example: crkd prepare-data la --source "2018LA_Seg_Training Set"

    Own data: a folder with images/ and labels/ (PNG, JPG, TIFF, NIfTI, NRRD, MHA or h5, 2D or 3D); an image without
    a label is unlabeled: crkd prepare-data myset --source FOLDER
    """
    from crkd_cli.data.obtain import obtain, source_of
    from crkd_cli.data.prepare import prepare
    from crkd_cli.errors import CrkdError, pluralize
    from crkd_cli.paths import data_root as root_of

    reader = source_of(name, source, root_of(data_root), spacing, published_crop)
    raw = obtain(name, reader, source, root_of(data_root), download, console.progress, console.info)
    store = root_of(data_root) / "prepared" / name
    console.info(f"raw files: {raw}")
    report = prepare(name, reader, raw, store, console.progress, check)
    if report.index is None:
        _show(report.findings)
        raise CrkdError(
            f"{pluralize(len(report.errors), 'problem')} in {raw} (see above), nothing was written; mend them"
        )
    for finding in report.findings:
        console.info(f"note: {finding.what}")
    _summary(report.index)
    if check:
        given = {
            "--source": source if raw == source else None,
            "--spacing": spacing,
            "--data-root": data_root,
        }
        crop = " --published-crop" if published_crop else ""
        console.info(
            f"no problem found; no store written. Next: crkd prepare-data {name}{_options(given)}{crop}"
        )
    else:
        console.info(
            f"store: {store}. Next: crkd make-splits {name}{_options({'--data-root': data_root})}"
        )


def _options(given: dict[str, Path | str | None]) -> str:
    """The options that have a value, as they are typed."""
    import shlex

    return "".join(
        f" {option} {shlex.quote(str(value))}"
        for option, value in given.items()
        if value is not None
    )


def _show(findings: list["Finding"]) -> None:
    """All findings: a table in a terminal, one line each when piped."""
    import sys

    if not sys.stderr.isatty():
        for finding in findings:
            print(f"{finding.level}: {finding.where}: {finding.what}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("case", "problem", show_lines=False)
    for finding in findings:
        table.add_row(Text(finding.where), Text(finding.what))
    Console(stderr=True).print(table)


def _summary(index: "Index") -> None:
    from crkd_cli.errors import pluralize

    labeled = sum(case.labeled for case in index.cases)
    groups = len({case.group for case in index.cases})
    sizes = [case.shape for case in index.cases]
    low, high = (" × ".join(map(str, map(pick, zip(*sizes, strict=True)))) for pick in (min, max))
    patients = "" if groups == len(index.cases) else f" of {groups} patients"
    size = low if low == high else f"{low} to {high}"
    classes = ", ".join(index.spec.classes)
    console.info(
        f"{pluralize(len(index.cases), 'case')}{patients}, {labeled} labeled; size {size}; classes: {classes}"
    )
