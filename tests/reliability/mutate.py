"""Seeded mutations of bytes, texts and trees."""

import copy
import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import yaml

# What numbers in texts are set to.
NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS += (2**63 - 1, 2**63, 2**64 - 1, 10**9, 10**12)
# A batch of 2¹⁵ images is valid and slow, so these are for numbers in binary files only.
BINARY_NUMBERS = (*NUMBERS, 0x7FFF, 0x8000, 0xFFFF)
FLOATS = (0.0, -1.0, 1e-40, 1e38, float("nan"), float("inf"), float("-inf"))
RUNS = (b"\0", b"\xff", b"\x80", b"A", b"\n")

DEEP = 2000
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    "x",
    "nan",
    "1e999",
    "../../x",
    "/etc/passwd",
    "\x00",
    "\x1b[31m",
    "[/]",
    "\ud800",
    "a" * 300,
    [],
    [[]],
    [0],
    [-1, 10**9],
    [16, 16],
    [None],
    ["x", "x"],
    {},
    {"x": 1},
    {"": {}},
)
# Text that YAML and the command line give another meaning than the user.
TEXTS = (
    "2024-13-45",
    "2024-01-01",
    "0x_",
    "!!int x",
    "!!python/object:os.system x",
    "!!binary x",
    "!!set {a}",
    "&a [*a]",
    "*a",
    "<<: 1",
    "[" * DEEP,
    "{a: " * DEEP,
    "{",
    "}",
    "1:2:3",
    "1_0",
    "0o7",
    ".inf",
    "-.inf",
    ".nan",
    "~",
    "yes",
    "=",
    "1e9999",
    "9" * 400,
    "9" * 5000,
    "-1",
    "1e400",
    "\u0661",
    "\ufeff1",
    "\u2028",
    "\x85",
    "[/]",
    "%",
    "100000",
    "1%%",
    "101%",
    "nan%",
    " ",
    "",
    "\t",
    "?",
    "- - -",
    "|",
    ">",
    "'",
    '"',
    "@",
    "`",
)


def mutate_bytes(data: bytes, draw: random.Random, spans: Sequence[range] = ()) -> bytes:
    """Damage `data` in one of many ways, if possible within one of `spans`."""
    if not data:
        return bytes(draw.randbytes(draw.randint(1, 64)))
    span = draw.choice(spans) if spans and draw.random() < 0.7 else range(len(data))
    if not len(span):
        span = range(len(data))
    return draw.choice(_BYTES)(bytearray(data), span, draw)


def _flip(data: bytearray, span: range, draw: random.Random) -> bytes:
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        data[draw.choice(span)] ^= 1 << draw.randrange(8)
    return bytes(data)


def _overwrite(data: bytearray, span: range, draw: random.Random) -> bytes:
    start = draw.choice(span)
    length = min(draw.choice((1, 4, 16, 200)), span.stop - start)
    run = draw.choice((*(byte * length for byte in RUNS), draw.randbytes(length)))
    data[start : start + length] = run
    return bytes(data)


def _truncate(data: bytearray, span: range, draw: random.Random) -> bytes:
    ends = (draw.randrange(len(data)), len(data) - min(len(data), draw.randint(1, 20)))
    return bytes(data[: draw.choice(ends)])


def _extend(data: bytearray, span: range, draw: random.Random) -> bytes:
    length = draw.choice((1, 7, 512, 5000))
    return bytes(data) + draw.choice((bytes(length), draw.randbytes(length), bytes(data)))


def _delete(data: bytearray, span: range, draw: random.Random) -> bytes:
    start = draw.choice(span)
    del data[start : start + draw.choice((1, 2, 4, 50))]
    return bytes(data)


def _repeat(data: bytearray, span: range, draw: random.Random) -> bytes:
    start = draw.choice(span)
    run = data[start : start + draw.choice((1, 4, 50, 1000))]
    data[start:start] = run
    return bytes(data)


def _swap(data: bytearray, span: range, draw: random.Random) -> bytes:
    length = draw.choice((1, 4, 32))
    first, second = sorted(draw.choice(span) for _ in range(2))
    one, other = data[first : first + length], data[second : second + length]
    if len(one) == len(other) and first + length <= second:
        data[first : first + length], data[second : second + length] = other, one
    return bytes(data)


def _set_number(data: bytearray, span: range, draw: random.Random) -> bytes:
    kind = draw.choice("BHIQ")
    size = struct.calcsize(kind)
    if len(data) < size:
        return b""
    start = min(draw.choice(span) // size * size, len(data) - size)
    return write_number(data, start, draw.choice("<>") + kind, draw)


def _replace_all(data: bytearray, span: range, draw: random.Random) -> bytes:
    length = len(data)
    return draw.choice((b"", bytes(length), draw.randbytes(min(length, 4096)), b"\n"))


_BYTES: tuple[Callable[[bytearray, range, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _truncate,
    _extend,
    _delete,
    _repeat,
    _swap,
    _set_number,
    _set_number,
    _replace_all,
)


def write_number(data: bytearray, start: int, kind: str, draw: random.Random) -> bytes:
    """Set the number of the `struct` type `kind` at `start` to an extreme value."""
    size = struct.calcsize(kind)
    if len(data) < start + size:
        return bytes(data)
    if kind[-1] in "fd":
        value = struct.pack(kind, draw.choice(FLOATS))
    else:
        order = "little" if kind[0] == "<" else "big"
        value = (draw.choice(BINARY_NUMBERS) % 256**size).to_bytes(size, order)
    data[start : start + size] = value
    return bytes(data)


def mutate_text(text: str, draw: random.Random) -> bytes:
    """Damage a text by lines, words and characters."""
    lines = text.splitlines(keepends=True)
    number = draw.randrange(len(lines)) if lines else 0
    line = lines[number] if lines else ""
    choice = draw.randrange(10)
    if choice == 0 and lines:
        del lines[number]
    elif choice == 1:
        lines[number:number] = [line] * draw.choice((1, 3, 1000))
    elif choice == 2:
        draw.shuffle(lines)
    elif choice == 3:
        return "".join(lines).encode() + draw.choice((b"\xff\xfe", b"\0", b"\xef\xbb\xbf", b"\r"))
    elif choice == 4:
        return draw.choice(("utf-16", "utf-8-sig", "utf-32")) and text.encode(
            draw.choice(("utf-16", "utf-8-sig", "utf-32"))
        )
    elif choice == 5:
        lines[number : number + 1] = [_replace_word(line, draw)]
    elif choice == 6:
        lines[number : number + 1] = [line.rstrip("\n") + "x" * draw.choice((1, 200, 140_000))]
    elif choice == 7:
        lines[number : number + 1] = [draw.choice(TEXTS) + "\n"]
    else:
        return mutate_bytes(text.encode(), draw)
    return "".join(lines).encode("utf-8", errors="surrogatepass")


def _replace_word(line: str, draw: random.Random) -> str:
    """Replace what follows a separator, which is a value in all our files."""
    for separator in draw.sample((":", "=", ",", " "), 4):
        head, found, tail = line.partition(separator)
        if found:
            words = (*TEXTS, *map(str, NUMBERS), *map(str, FLOATS))
            end = "\n" if tail.endswith("\n") else ""
            return f"{head}{separator} {draw.choice(words)}{end}"
    return draw.choice(TEXTS)


def mutate_tree(tree: Any, draw: random.Random) -> Any:
    """Replace, delete, rename, repeat or nest a value somewhere in dicts and lists."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        nodes = list(_nodes(tree))
        if not nodes:
            return draw.choice(VALUES)
        parent, key = draw.choice(nodes)
        choice = draw.randrange(8)
        if choice == 0:
            del parent[key]
        elif choice == 1 and isinstance(parent, dict):
            parent[draw.choice(("x", "", f"{key}x", 1, None))] = parent.pop(key)
        elif choice == 2 and isinstance(parent, list):
            parent += [parent[key]] * draw.choice((1, 3, 500))
        elif choice == 3:
            parent[key] = [parent[key]]
        elif choice == 4:
            parent[key] = str(parent[key])
        elif choice == 5:
            parent[key] = copy.deepcopy(draw.choice(nodes)[0])
        else:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
    return tree


def _nodes(tree: Any) -> Any:
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield tree, key
        yield from _nodes(value)


def mutate_json(text: str, draw: random.Random) -> bytes:
    """Damage a JSON text, mostly by its values."""
    choice = draw.random()
    if choice < 0.35:
        return mutate_text(text, draw)
    if choice < 0.4:
        return b"[" * 100_000
    tree = mutate_tree(json.loads(text), draw)
    return json.dumps(tree, indent=1).encode()


def mutate_yaml(text: str, draw: random.Random) -> bytes:
    """Damage a YAML text, mostly by its values."""
    if draw.random() < 0.5:
        return mutate_text(text, draw)
    tree = mutate_tree(yaml.safe_load(text), draw)
    return yaml.dump(tree, sort_keys=False).encode("utf-8", errors="surrogatepass")


def mutate_png(data: bytes, draw: random.Random) -> bytes:
    """Set a field of the header, or change, swap, drop or repeat chunks, with valid checksums."""
    chunks = []
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunks.append(bytearray(data[position + 4 : position + 8 + length]))
        position += 12 + length
    number = draw.randrange(len(chunks))
    choice = draw.randrange(4)
    if choice == 0:
        start, kind = draw.choice(((4, ">I"), (8, ">I"), (12, ">B"), (13, ">B"), (16, ">B")))
        chunks[0] = bytearray(write_number(chunks[0], start, kind, draw))
    elif choice == 1:
        chunks[number] = bytearray(mutate_bytes(bytes(chunks[number]), draw))
    elif choice == 2:
        draw.shuffle(chunks)
    else:
        chunks[number:number] = [chunks[number]] * draw.choice((1, 3))
    parts = [data[:8]]
    for chunk in chunks:
        checksum = struct.pack(">I", zlib.crc32(chunk))
        parts.append(struct.pack(">I", max(len(chunk) - 4, 0)) + bytes(chunk) + checksum)
    return b"".join(parts)
