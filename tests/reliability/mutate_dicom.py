"""Seeded mutations of DICOM files and of the folders of series."""

import os
import random
import struct
from pathlib import Path

from tests.reliability.mutate import BINARY_NUMBERS, mutate_bytes

LONG = (b"OB", b"OW", b"OF", b"OD", b"SQ", b"UN", b"UT", b"UC", b"UR")  # with 32 bits of length
SHORT = (b"AE", b"CS", b"DA", b"DS", b"FD", b"IS", b"LO", b"PN", b"SS", b"UI", b"UL", b"US")
PREAMBLE = 132
UNKNOWN_LENGTH = 2**32 - 1
SYNTAX = "1.2.840.10008.1.2"
SYNTAXES = tuple(f"{SYNTAX}{end}" for end in ("", ".1", ".1.99", ".2", ".5", ".4.50", ".4.90"))
TEXTS = (
    "",
    "\0\0",
    "0",
    "-1",
    "1e-40",
    "1e400",
    "1e38",
    "nan\\nan\\nan",
    "inf",
    "0\\0\\0",
    "0\\0",
    "-2\\-2",
    "1\\0\\0\\0.7\\0.7\\0",
    "0\\0\\0\\0\\0\\0",
    "1\\2",
    "\\" * 50,
    "9" * 400,
    "1.2.3",
    "1.2." * 40,
    "../../x",
    "/etc/passwd",
    "\x1b[31mred",
    "[bold]",
    "a\nb\rc",
    "\xff\xfe",
    "ISO 2022 IR 87",
    "SEG",
    "CT",
    "US",
    "RGB",
    "YBR_FULL_422",
    "PALETTE COLOR",
    "LOCALIZER",
    *SYNTAXES,
)

Element = tuple[bytes, bytes, bytes]  # tag, value representation, value


def mutate_dicom(data: bytes, draw: random.Random) -> bytes:
    """Replace, drop, repeat or swap elements of an explicit little-endian file, or lie on them."""
    items = _elements(data)
    number, other = draw.randrange(len(items)), draw.randrange(len(items))
    tag, kind, value = items[number]
    lie = None
    choice = draw.randrange(10)
    if choice < 4:
        items[number] = (tag, kind, _value(kind, value, draw))
    elif choice == 4:
        items[number] = (tag, draw.choice((*LONG, *SHORT, b"xx")), value)
    elif choice == 5:
        del items[number]
    elif choice == 6:
        items[number:number] = [items[number]] * draw.choice((1, 100))
    elif choice == 7:
        items[number], items[other] = (tag, kind, items[other][2]), (*items[other][:2], value)
    elif choice == 8:
        items[number] = (draw.randbytes(4), kind, value)
    else:
        lie = draw.choice(BINARY_NUMBERS)
    parts = [data[:PREAMBLE]]
    for position, item in enumerate(items):
        parts.append(_encoded(item, lie if position == number else None))
    return b"".join(parts)


def _value(kind: bytes, value: bytes, draw: random.Random) -> bytes:
    if kind in (b"US", b"SS", b"UL"):
        size = struct.calcsize("I" if kind == b"UL" else "H")
        return (draw.choice(BINARY_NUMBERS) % 256**size).to_bytes(size, "little")
    if kind in LONG or draw.random() < 0.2:
        return mutate_bytes(value, draw)
    return draw.choice(TEXTS).encode("latin-1")


def _elements(data: bytes) -> list[Element]:
    """Return the elements at the top level; a sequence and compressed pixels are one value."""
    items = []
    position = PREAMBLE
    while position + 8 <= len(data):
        tag, kind = data[position : position + 4], data[position + 4 : position + 6]
        start = position + (12 if kind in LONG else 8)
        (length,) = struct.unpack_from(
            "<I" if kind in LONG else "<H", data, start - 4 + 2 * (kind not in LONG)
        )
        position = len(data) if length == UNKNOWN_LENGTH else start + length
        items.append((tag, kind, data[start:position]))
    return items


def _encoded(item: Element, lie: int | None) -> bytes:
    """Return the bytes of an element, with another length if there is a `lie`."""
    tag, kind, value = item
    value += b"\0" * (len(value) % 2)
    is_compressed = value[:4] == b"\xfe\xff\x00\xe0" and kind != b"SQ"
    length = UNKNOWN_LENGTH if is_compressed else len(value)
    length = length if lie is None else lie
    if kind in LONG:
        return tag + kind + b"\0\0" + struct.pack("<I", length % 2**32) + value
    return tag + kind + struct.pack("<H", length % 2**16) + value


def mutate_folder(folder: Path, draw: random.Random) -> None:
    """Remove, repeat, rename or add a file in the folder of a series."""
    files = sorted(folder.iterdir())
    file, other = draw.choice(files), draw.choice(files)
    choice = draw.randrange(9)
    if choice == 0:
        file.unlink()
    elif choice == 1:
        (folder / draw.choice(("copy.dcm", "copy", "0.dcm"))).write_bytes(file.read_bytes())
    elif choice == 2:
        file.write_bytes(other.read_bytes())
    elif choice == 3:
        file.rename(
            folder / draw.choice(("IM", "x.png", "x.nii.gz", "DICOMDIR", ".x", "a\nb", "[b]"))
        )
    elif choice == 4:
        (folder / "x.dcm").symlink_to(draw.choice(("missing", str(file), "/etc/passwd", "x.dcm")))
    elif choice == 5:
        os.mkfifo(folder / draw.choice(("x.dcm", "x")))
    elif choice == 6:
        content = draw.choice((b"", b"x", b"\0" * 128 + b"DICM", b"\0" * 200))
        (folder / draw.choice(("x.dcm", "x", "readme.txt", "x.ima"))).write_bytes(content)
    elif choice == 7:
        (folder / "below").mkdir()
        file.rename(folder / "below" / file.name)
    else:
        file.chmod(0)
