"""Names and colors of label values, in the form that headers of medical files have for them."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from crkd_cli.text import printable


class LabelEntry(NamedTuple):
    """What a value of a label map means, and its color for viewers."""

    value: int
    name: str
    color: tuple[int, int, int]  # red, green, blue; 0 to 255


def caret_xml(entries: Sequence[LabelEntry]) -> bytes:
    """Return the label table of a NIfTI extension.

    It is the XML of Caret and Connectome Workbench, which TotalSegmentator's files contain too.
    """
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<CaretExtension><VolumeInformation Index="0"><LabelTable>',
    ]
    for value, name, color in entries:
        red, green, blue = (f"{part / 255:.6g}" for part in color)
        lines.append(
            f'<Label Key="{value}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="1">'
            f"{escape(printable(name))}</Label>"
        )
    lines.append("</LabelTable><VolumeType>Label</VolumeType></VolumeInformation></CaretExtension>")
    return "\n".join(lines).encode()


def slicer_fields(entries: Sequence[LabelEntry], size: Sequence[int]) -> dict[str, str]:
    """Return the key/value pairs of a NRRD file of `size` (x first) that 3D Slicer reads.

    They are those of its segmentations, `.seg.nrrd`, which may have any name. All segments lie in
    one layer, and in the whole volume.
    """
    sides = [*size, *(1 for _ in range(3 - len(size)))]
    extent = " ".join(f"0 {side - 1}" for side in sides)
    fields: dict[str, str] = {}
    for number, (value, name, color) in enumerate(entries):
        facts = {
            "ID": f"Segment_{value}",
            "Name": printable(name),
            "Color": " ".join(f"{part / 255:.6g}" for part in color),
            "LabelValue": str(value),
            "Layer": "0",
            "Extent": extent,
        }
        fields |= {f"Segment{number}_{key}": text for key, text in facts.items()}
    return fields
