"""`crkd predict`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from crkd_cli.cli.bars import progress
from crkd_cli.cli.console import command, info
from crkd_cli.cli.options import Device, Quiet, Raw, Tta, Verbose

CLASSES_PER_LINE = 8


@command
def predict(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="An image, or a folder of images or series."),
    ],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="The model; repeat the option to average several. RUN stands for all RUN-seed… of "
            "--seeds, a folder of folds for all folds. Default: the newest under runs/.",
            rich_help_panel="Model",
        ),
    ] = None,
    tta: Tta = False,
    raw: Raw = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the masks. Default: FOLDER-masks beside the images' folder.",
            rich_help_panel="Output",
        ),
    ] = None,
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay",
            help="Also write a picture of every case with its contours.",
            rich_help_panel="Output",
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write class probabilities: float16 [K, ...] in .npz, with the geometry.",
            rich_help_panel="Output",
        ),
    ] = False,
    qc: Annotated[
        bool,
        typer.Option(
            "--qc",
            help="Also write quality.csv, with volumes and confidence of every mask, and name the "
            "masks to look at first.",
            rich_help_panel="Output",
        ),
    ] = False,
    largest_component: Annotated[
        bool,
        typer.Option(
            "--largest-component",
            help="Keep only the largest connected component of every class, whatever the "
            "checkpoint says.",
            rich_help_panel="Output",
        ),
    ] = False,
    dicom_seg: Annotated[
        bool,
        typer.Option(
            "--dicom-seg",
            help="Also write a DICOM Segmentation of every DICOM series.",
            rich_help_panel="Output",
        ),
    ] = False,
    class_numbers: Annotated[
        bool,
        typer.Option(
            "--class-numbers",
            help="Write class numbers 0, 1, 2, ... into masks. Default: the values of the label "
            "files.",
            rich_help_panel="Output",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Predict again if the mask exists already.",
            rich_help_panel="Output",
        ),
    ] = False,
    other_modality: Annotated[
        bool,
        typer.Option(
            "--other-modality",
            help="Predict CT images with a model for MR, and the reverse, instead of refusing "
            "them.",
            rich_help_panel="Model",
        ),
    ] = False,
    device: Device = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a mask for every image, in its format and geometry.

    Example: crkd predict scans/ --checkpoint runs/la-crkd-4/last.pth --overlay

    Masks have the name and size of their image, and contain the label values
    that the model was trained on. Masks of JPG images are PNG files, those of
    DICOM series NIfTI files.

    Formats: PNG, JPG, TIFF, BMP, GIF, NIfTI, NRRD, MetaImage, DICOM, HDF5.
    """
    from crkd_cli.errors import CrkdError, pluralize
    from crkd_cli.inference.cases import check_input
    from crkd_cli.runtime.checkpoint_facts import describe_checkpoint
    from crkd_cli.runtime.run_folder import find_checkpoints, newest_checkpoint

    paths = checkpoint or [newest_checkpoint(Path("runs"))]
    files = [file for path in paths for file in find_checkpoints(path)]
    for file in files:
        info(f"checkpoint: {describe_checkpoint(file)}")
    check_input(source, out)
    info("loading PyTorch")
    from crkd_cli.inference.case_predictor import PredictOptions
    from crkd_cli.inference.predict import predict as run
    from crkd_cli.inference.quality import QUALITY, describe_first

    options = PredictOptions(
        overlays=overlay,
        probabilities=probabilities,
        largest_component=largest_component,
        raw=raw,
        overwrite=overwrite,
        class_numbers=class_numbers,
        other_modality=other_modality,
        dicom_seg=dicom_seg,
        qc=qc,
    )
    result = run(source, files, info, progress, out, device, options, tta=tta)
    message = f"{pluralize(result.written, 'mask')} written to {result.folder}"
    if result.skipped:
        message += f"; {result.skipped} skipped: already there, from any checkpoint (--overwrite)"
    info(message)
    if result.written:
        for line in describe_values(result.classes):
            info(line)
    for line in describe_first(result.quality):
        info(line)
    if result.quality:
        info(f"all masks: {result.folder / QUALITY}")
    if result.failures:
        raise CrkdError(f"{pluralize(len(result.failures), 'image')} failed:", result.failures)


def describe_values(classes: tuple[tuple[int, str], ...]) -> Iterator[str]:
    """Yield lines that name the class of every value in the masks."""
    texts = [f"{value} {name}" for value, name in classes]
    if len(texts) <= CLASSES_PER_LINE:
        yield f"values: {', '.join(texts)}"
        return
    yield "values:"
    for first in range(0, len(texts), CLASSES_PER_LINE):
        yield f"  {', '.join(texts[first : first + CLASSES_PER_LINE])}"
