"""Identify the format of a file by its first bytes, regardless of its name."""

from typing import NamedTuple

HEAD_BYTES = 512


class Content(NamedTuple):
    """What a file contains."""

    name: str  # for messages, with an article
    suffixes: tuple[str, ...] = ()  # that a supported file of this kind may have
    advice: str = ""  # what to do with an unsupported file


PNG = Content("a PNG picture", (".png",))
JPEG = Content("a JPG picture", (".jpg", ".jpeg"))
TIFF = Content("a TIFF picture", (".tif", ".tiff"))
BMP = Content("a BMP picture", (".bmp",))
GIF = Content("a GIF picture", (".gif",))
HDF5 = Content("an HDF5 file", (".h5", ".hdf5"))
NRRD = Content("an NRRD file", (".nrrd", ".nhdr"))
METAIMAGE = Content("a MetaImage file", (".mha", ".mhd"))
NIFTI = Content("a NIfTI file", (".nii", ".nii.gz"))
NIFTI_PAIR = Content("a NIfTI header", (".hdr",))
GZIP = Content("a gzip file", (".nii.gz", ".nii"), "decompress it")
DICOM = Content("a DICOM file", (".dcm", ".ima"))
OPEN_AS_PNG = "open and save it as PNG"

MAGIC = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"NRRD000", NRRD),
    (b"ObjectType", METAIMAGE),
    (b"NDims", METAIMAGE),
    (b"\x1f\x8b", GZIP),
    (b"PK\x03\x04", Content("a zip archive", (), "unpack it")),
    (b"7z\xbc\xaf\x27\x1c", Content("a 7z archive", (), "unpack it")),
    (b"Rar!", Content("a rar archive", (), "unpack it")),
    (b"BZh", Content("a bzip2 file", (), "decompress it")),
    (b"\xfd7zXZ", Content("an xz file", (), "decompress it")),
    (b"%PDF", Content("a PDF document", (), "export its pictures as PNG")),
    (b"%!PS", Content("a PostScript document", (), OPEN_AS_PNG)),
    (b"\xc5\xd0\xd3\xc6", Content("a PostScript document", (), OPEN_AS_PNG)),
    (b"\0\0\0\x0cjP  ", Content("a JPEG 2000 picture", (), OPEN_AS_PNG)),
    (b"\xff\x4f\xff\x51", Content("a JPEG 2000 picture", (), OPEN_AS_PNG)),
    (b"8BPS", Content("a Photoshop document", (), OPEN_AS_PNG)),
    (b"\x93NUMPY", Content("a NumPy array", (), "save it as NIfTI, PNG or h5")),
    (b"MATLAB 5.0", Content("a MATLAB file", (), "save it as NIfTI, PNG or h5")),
    (
        b"version https://git-lfs",
        Content("a Git LFS pointer", (), "get the file with git lfs pull"),
    ),
)


def identify(head: bytes) -> Content | None:
    """Return what a file with these first HEAD_BYTES contains, or None if it is unknown."""
    if head[128:132] == b"DICM":  # first, because the preamble may be that of a TIFF
        return DICOM
    for magic, content in MAGIC:
        if head.startswith(magic):
            return content
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return NIFTI
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        return NIFTI_PAIR
    if head.startswith(b"BM") and len(head) >= 26 and head[6:10] == bytes(4):
        return BMP
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Content("a WebP picture", (), OPEN_AS_PNG)
    if head[4:8] == b"ftyp":
        return Content("a HEIC or AVIF picture", (), OPEN_AS_PNG)
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return Content("a web page", (), "download the image again")
    return None
