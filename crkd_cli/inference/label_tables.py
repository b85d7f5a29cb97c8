"""Names and colors of the classes for viewers: ITK-SNAP and 3D Slicer.

Both formats are text, a line per value of the masks: ITK-SNAP's label descriptions have value, red,
green, blue (0 to 255), opacity (0 to 1), two flags for visibility, and the name in quotes; color
tables of 3D Slicer have value, name without spaces, and red, green, blue, opacity (0 to 255).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from crkd_cli.inference.overlay import class_color
from crkd_cli.paths import atomic_write
from crkd_cli.text import printable

ITK_SNAP, SLICER = "labels-itksnap.txt", "labels-slicer.ctbl"

Classes = Sequence[tuple[int, str]]  # the value in masks, and the name; the background first


def write_label_tables(folder: Path, classes: Classes) -> None:
    """Write both files for masks in `folder`, with the colors of the overlays."""
    for name, lines in ((ITK_SNAP, _itk_snap(classes)), (SLICER, _slicer(classes))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _itk_snap(classes: Classes) -> Iterator[str]:
    yield "# Label descriptions of ITK-SNAP: value, red, green, blue, opacity, visible, mesh, name"
    for value, name, color in _with_colors(classes):
        shown = 1 if color else 0
        red, green, blue = color or (0, 0, 0)
        text = printable(name).replace('"', "'")
        yield f'{value} {red} {green} {blue} {shown} {shown} {shown} "{text}"'


def _slicer(classes: Classes) -> Iterator[str]:
    yield "# Color table file of 3D Slicer"
    yield f"# {len(classes)} values"
    for value, name, color in _with_colors(classes):
        opacity = 255 if color else 0
        red, green, blue = color or (0, 0, 0)
        text = "_".join(printable(name).split())
        yield f"{value} {text} {red} {green} {blue} {opacity}"


def _with_colors(classes: Classes) -> Iterable[tuple[int, str, tuple[int, ...] | None]]:
    """Yield value, name and color (0 to 255) of every class; the background has no color."""
    for k, (value, name) in enumerate(classes):
        yield value, name, tuple(bytes.fromhex(class_color(k)[1:])) if k else None
