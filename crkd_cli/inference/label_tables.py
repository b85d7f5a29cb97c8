"""Names and colors of the classes for viewers: ITK-SNAP and 3D Slicer.

Both formats are text, a line per value of the masks: ITK-SNAP's label descriptions have value, red,
green, blue (0 to 255), opacity (0 to 1), two flags for visibility, and the name in quotes; color
tables of 3D Slicer have value, name without spaces, and red, green, blue, opacity (0 to 255).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from crkd_cli.data.raw.label_entries import LabelEntry
from crkd_cli.inference.overlay import class_color
from crkd_cli.paths import atomic_write
from crkd_cli.text import printable

ITK_SNAP, SLICER = "labels-itksnap.txt", "labels-slicer.ctbl"

Classes = Sequence[tuple[int, str]]  # the value in masks, and the name; the background first


def label_entries(classes: Classes) -> list[LabelEntry]:
    """Return the values, names and colors of the foreground classes; colors as in overlays."""
    entries = []
    for k, (value, name) in enumerate(classes[1:], start=1):
        red, green, blue = bytes.fromhex(class_color(k)[1:])
        entries.append(LabelEntry(value, name, (red, green, blue)))
    return entries


def write_label_tables(folder: Path, classes: Classes) -> None:
    """Write both files for masks in `folder`, with the colors of the overlays."""
    for name, lines in ((ITK_SNAP, _itk_snap(classes)), (SLICER, _slicer(classes))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _itk_snap(classes: Classes) -> Iterator[str]:
    yield "# ITK-SnAP Label Description File"  # MRIcron recognizes the format by this line
    yield "# value, red, green, blue, opacity, visible, visible as a mesh, name"
    background = LabelEntry(*classes[0], color=(0, 0, 0))
    for value, name, (red, green, blue) in [background, *label_entries(classes)]:
        shown = int(value != background.value)
        text = printable(name).replace('"', "'")
        yield f'{value} {red} {green} {blue} {shown} {shown} {shown} "{text}"'


def _slicer(classes: Classes) -> Iterator[str]:
    yield "# Color table file of 3D Slicer"
    yield f"# {len(classes)} values"
    background = LabelEntry(*classes[0], color=(0, 0, 0))
    for value, name, (red, green, blue) in [background, *label_entries(classes)]:
        opacity = 0 if value == background.value else 255
        text = "_".join(printable(name).split())
        yield f"{value} {text} {red} {green} {blue} {opacity}"
