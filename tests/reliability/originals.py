"""Valid image files of every format, and where each format keeps its numbers and its checksums."""

import gzip
import io
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import nibabel
import numpy as np
import SimpleITK as sitk
from PIL import Image

from crkd_cli.data.raw import formats
from tests.dicom import save, slice_dataset, write_enhanced
from tests.reliability.mutate import mutate_bytes, mutate_png, mutate_text, write_number

SIDE = 16
SLICES = 4
Field = tuple[int, str]  # offset and `struct` type

NIFTI_FIELDS: tuple[Field, ...] = (
    (0, "<i"),
    *((40 + 2 * axis, "<h") for axis in range(8)),
    (70, "<h"),
    (72, "<h"),
    *((76 + 4 * axis, "<f") for axis in range(5)),
    (108, "<f"),
    (112, "<f"),
    (116, "<f"),
    (123, "<B"),
    (252, "<h"),
    (254, "<h"),
    *((256 + 4 * number, "<f") for number in range(18)),
    (344, "<I"),
)
BMP_FIELDS = ((2, "<I"), (10, "<I"), (14, "<I"), (18, "<i"), (22, "<i"), (28, "<H"), (30, "<I"))
GIF_FIELDS = ((6, "<H"), (8, "<H"), (10, "<B"), (13, "<B"))


@dataclass(frozen=True)
class Original:
    """A valid image file of one format."""

    name: str
    suffix: str
    dims: int
    data: bytes
    parts: dict[str, bytes] = field(default_factory=dict)  # other files of the image, by suffix
    fields: tuple[Field, ...] = ()  # numbers of the header
    protected: tuple[range, ...] = ()  # bytes under a checksum
    inner: bool = False  # `data` is gzip; `fields` are those of its content
    special: Callable[[bytes, random.Random], bytes] | None = None  # knows the format

    def mutate(self, draw: random.Random) -> "Mutant":
        """Damage one of the files."""
        if self.parts and draw.random() < 0.4:
            suffix = draw.choice(list(self.parts))
            damaged = mutate_bytes(self.parts[suffix], draw)
            return Mutant(self, self.data, {**self.parts, suffix: damaged}, False)
        if self.special is not None and draw.random() < 0.5:  # with valid checksums
            return Mutant(self, self.special(self.data, draw), self.parts, False)
        choice = draw.random()
        if self.inner and choice < 0.4:  # compressed again, so with a valid checksum
            return Mutant(self, self._mutate_content(draw), self.parts, False)
        if self.fields and not self.inner and choice < 0.4:
            data = write_number(bytearray(self.data), *draw.choice(self.fields), draw)
        else:
            data = mutate_bytes(self.data, draw, self.protected)
        return Mutant(self, data, self.parts, self._is_protected(data))

    def _mutate_content(self, draw: random.Random) -> bytes:
        content = gzip.decompress(self.data)
        if draw.random() < 0.5:
            return gzip.compress(mutate_bytes(content, draw), mtime=0)
        damaged = write_number(bytearray(content), *draw.choice(self.fields), draw)
        return gzip.compress(damaged, mtime=0)

    def _is_protected(self, data: bytes) -> bool:
        """Tell whether reading `data` must fail or return what the original contains.

        This holds if only bytes under a checksum differ, and if the file is longer or shorter than
        its header says.
        """
        if len(data) != len(self.data):
            return data.startswith(self.data) or self.data.startswith(data)
        differing = (i for i, (a, b) in enumerate(zip(data, self.data, strict=True)) if a != b)
        return all(any(i in span for span in self.protected) for i in differing)


@dataclass(frozen=True)
class Mutant:
    """A damaged image: its files, and whether it may be read as another image."""

    original: Original
    data: bytes
    parts: dict[str, bytes]
    protected: bool

    def write(self, folder: Path, stem: str) -> Path:
        """Write the files to `folder`; headers name their other file."""
        path = folder / f"{stem}{self.original.suffix}"
        path.write_bytes(self.data.replace(b"STEM", stem.encode()))
        for suffix, data in self.parts.items():
            (folder / f"{stem}{suffix}").write_bytes(data)
        return path


def image(dims: int) -> np.ndarray:
    """A bright disc on a darker, uneven background, uint8."""
    shape = (SIDE, SIDE) if dims == 2 else (SLICES, SIDE, SIDE)
    axes = np.indices(shape)
    disc = (axes[-1] - 7) ** 2 + (axes[-2] - 8) ** 2 < 20
    noise = 37 * axes[-1] ** 2 % 23 + 29 * axes[-2] ** 3 % 19  # so that little is compressed away
    return (30 + 5 * axes[-1] + noise + 70 * disc).astype(np.uint8)


def label(dims: int) -> np.ndarray:
    """The disc of `image` as 0 and 1."""
    axes = np.indices((SIDE, SIDE) if dims == 2 else (SLICES, SIDE, SIDE))
    return ((axes[-1] - 7) ** 2 + (axes[-2] - 8) ** 2 < 20).astype(np.uint8)


def originals(content: Callable[[int], np.ndarray]) -> list[Original]:
    """Return a file of every supported format, with `image` or `label`."""
    made = [*_pictures(content), *_volumes(content(3)), *_hdf5()]
    if content is image:  # labels are not DICOM
        made += _dicom()
    return [original for original in made if original.suffix in formats.SUFFIXES]


def _pictures(content: Callable[[int], np.ndarray]) -> list[Original]:
    gray, pages = content(2), content(3)
    color = Image.fromarray(np.stack([gray] * 3, axis=-1))
    wide = Image.fromarray(gray.astype(np.uint16) * 255)
    palette = Image.fromarray(gray).convert("P")
    plain = Image.fromarray(gray)
    made = []
    for name, picture in (("gray", plain), ("wide", wide), ("color", color), ("palette", palette)):
        data = _saved(picture, format="PNG")
        protected = (range(8, len(data)),)
        made.append(
            Original(f"png-{name}", ".png", 2, data, protected=protected, special=mutate_png)
        )
    for name, picture in (("gray", plain), ("color", color)):
        made.append(Original(f"jpg-{name}", ".jpg", 2, _saved(picture, format="JPEG")))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        data = _saved(plain, format="TIFF", compression=compression)
        made.append(_tiff(compression, 2, data))
    made.append(_tiff("wide", 2, _saved(wide, format="TIFF")))
    others = [Image.fromarray(page) for page in pages[1:]]
    data = _saved(Image.fromarray(pages[0]), format="TIFF", save_all=True, append_images=others)
    made.append(_tiff("pages", 3, data))
    made.append(Original("bmp", ".bmp", 2, _saved(plain, format="BMP"), fields=BMP_FIELDS))
    made.append(Original("gif", ".gif", 2, _saved(plain, format="GIF"), fields=GIF_FIELDS))
    return made


def _saved(picture: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def _tiff(name: str, dims: int, data: bytes) -> Original:
    fields: list[Field] = [(4, "<I")]
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    for number in range(count):
        entry = start + 2 + 12 * number
        fields += [(entry, "<H"), (entry + 2, "<H"), (entry + 4, "<I"), (entry + 8, "<I")]
    fields.append((start + 2 + 12 * count, "<I"))  # of the next page
    return Original(f"tif-{name}", ".tif", dims, data, fields=tuple(fields))


def _volumes(voxels: np.ndarray) -> list[Original]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nifti = nibabel.Nifti1Image(voxels.T.astype(np.int16), np.diag([1.5, 1.5, 3.0, 1.0]))
        nibabel.save(nifti, folder / "a.nii")
        nibabel.save(nibabel.Nifti1Pair(voxels.T, np.eye(4)), folder / "STEM.hdr")
        second = nibabel.Nifti2Image(voxels.T.astype(np.float32), np.eye(4))
        nibabel.save(second, folder / "second.nii")
        itk = sitk.GetImageFromArray(voxels)
        for file in ("raw.nrrd", "raw.mha", "STEM.mhd", "STEM.nhdr"):
            sitk.WriteImage(itk, folder / file, useCompression=False)
        for file in ("gz.nrrd", "gz.mha"):
            sitk.WriteImage(itk, folder / file, useCompression=True)
        read = {file.name: file.read_bytes() for file in folder.iterdir()}
    plain = read["a.nii"]
    packed = gzip.compress(plain, mtime=0)
    pair = {".img": read["STEM.img"]}
    return [
        Original("nii", ".nii", 3, plain, fields=NIFTI_FIELDS),
        Original("nii-2", ".nii", 3, read["second.nii"]),
        Original(
            "nii-gz",
            ".nii.gz",
            3,
            packed,
            fields=NIFTI_FIELDS,
            protected=(range(len(packed)),),
            inner=True,
        ),
        Original("nii-pair", ".hdr", 3, read["STEM.hdr"], pair, fields=NIFTI_FIELDS),
        _with_text("nrrd-raw", ".nrrd", read["raw.nrrd"], b"\n\n", compressed=False),
        _with_text("nrrd-gz", ".nrrd", read["gz.nrrd"], b"\n\n"),
        _with_text("mha-raw", ".mha", read["raw.mha"], b"LOCAL\n", compressed=False),
        _with_text("mha-gz", ".mha", read["gz.mha"], b"LOCAL\n"),
        _with_text("mhd", ".mhd", read["STEM.mhd"], b"", {".raw": read["STEM.raw"]}),
        _with_text("nhdr", ".nhdr", read["STEM.nhdr"], b"", {".raw": read["STEM.raw"]}),
    ]


def _with_text(
    name: str,
    suffix: str,
    data: bytes,
    end: bytes,
    parts: dict[str, bytes] | None = None,
    compressed: bool = True,
) -> Original:
    """Return the original of a format whose header is a text that ends in `end`."""
    start = data.index(end) + len(end) if end else len(data)

    def mutate_header(whole: bytes, draw: random.Random) -> bytes:
        return mutate_text(whole[:start].decode(), draw) + whole[start:]

    protected = (range(start, len(data)),) if compressed else ()
    return Original(name, suffix, 3, data, parts or {}, protected=protected, special=mutate_header)


def _dicom() -> list[Original]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = slice_dataset(image(2), "picture", 0)
        raw = save(picture, folder / "raw").read_bytes()
        packed = save(picture, folder / "rle", compressed=True).read_bytes()
        frames = write_enhanced(folder / "frames", image(3)).read_bytes()
    return [
        Original("dcm-raw", ".dcm", 2, raw),
        Original("dcm-rle", ".dcm", 2, packed),
        Original("dcm-frames", ".dcm", 3, frames),
    ]


def _hdf5() -> list[Original]:
    made = []
    for dims in (2, 3):
        for name, options in (("raw", {}), ("gz", {"compression": "gzip"})):
            file = io.BytesIO()
            with h5py.File(file, "w") as content:
                dataset = content.create_dataset("image", data=image(dims), **options)
                content.create_dataset("label", data=label(dims), **options)
                protected: tuple[range, ...] = ()
                if options:
                    content.flush()
                    chunk = dataset.id.get_chunk_info(0)
                    protected = (range(chunk.byte_offset, chunk.byte_offset + chunk.size),)
            data = file.getvalue()
            made.append(Original(f"h5-{name}-{dims}d", ".h5", dims, data, protected=protected))
    return made
