"""Read and write NIfTI files with nibabel: .nii, .nii.gz and pairs of .hdr and .img.

Compression is detected from the content, not from the suffix. A mask gets the header of its
image, without what may identify a patient (descriptions and extensions) and without what concerns
the image's values (scale, display range, intent, slice timing). Its extension names its labels.
"""

import gzip
import math
import struct
from collections.abc import Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crkd_cli.data.raw.geometry import Affine, Geometry
from crkd_cli.data.raw.label_entries import LabelEntry, caret_xml
from crkd_cli.data.raw.limits import check_declared_size, too_many_axes
from crkd_cli.data.raw.voxels import read_exactly
from crkd_cli.errors import CrkdError

SUFFIXES = (".nii.gz", ".nii", ".hdr")
MAX_SIDE = 2**15 - 1  # of NIfTI-1
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
UNIT_MASK = 7  # of xyzt_units; the other bits are the unit of time
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # meters and micrometers
VECTOR_INTENT, LABEL_INTENT = 1007, 1002
CARET_CODE = 30  # of an extension
RGB, RGBA = 128, 2304
KEPT_FIELDS = (
    "dim_info",
    "dim",
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)


class _Voxels(NamedTuple):
    """Where the voxels of a file are, and their layout."""

    file: Path
    offset: int
    shape: tuple[int, ...]  # slowest axis first, as the file contains them: [channels, z, y, x]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read(path: Path, channels: int = 0) -> tuple[NDArray[Any], Geometry]:
    """Read the voxels as [C, *S] (z first), scaled as the header says, and the geometry.

    A fourth axis of `channels`, the number of those of the dataset, is C.
    """
    header = _read_header(path)
    voxels = _voxels(path, header, channels)
    compressed = _is_gzip(voxels.file)
    check_declared_size(voxels.file, voxels.offset + voxels.size, compressed=compressed)
    with voxels.file.open("rb") as file:
        content = read_exactly(file, voxels.size, compressed=compressed, skip=voxels.offset)
    array = content.view(voxels.dtype).reshape(voxels.shape)
    if array.dtype.fields is not None:
        array = _colors(array, path)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return _scale(array, header), _geometry(header)


def layout(path: Path, channels: int = 0) -> tuple[int, tuple[int, ...], Geometry, bool]:
    """Return the number of channels, *S (z first), the geometry, and whether they are colors."""
    header = _read_header(path)
    count, *size = _voxels(path, header, channels).shape
    is_color = int(header["datatype"]) in (RGB, RGBA)
    return 3 if is_color else count, tuple(size), _geometry(header), is_color


def data_file(header: Path) -> Path | None:
    """Return the file with the voxels of a `.hdr` file, which has its name."""
    for suffix in (".img", ".IMG"):
        if (file := header.with_suffix(suffix)).is_file():
            return file
    return None


def write(
    path: Path,
    array: NDArray[Any],
    geometry: Geometry | None = None,
    labels: Sequence[LabelEntry] = (),
) -> None:
    """Write [*S] (z first) to one file, compressed if its name ends in .gz.

    `labels` are the names and colors of its values.
    """
    header = _new_header(array.shape[::-1], geometry)
    header.set_data_dtype(array.dtype.newbyteorder("="))
    extension = bytes(4)  # none
    if labels:
        header["intent_code"] = LABEL_INTENT
        extension = _extension(caret_xml(labels))
    header["vox_offset"] = len(header.binaryblock) + len(extension)
    content = BytesIO()
    content.write(header.binaryblock)
    content.write(extension)
    content.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    if path.name.lower().endswith(".gz"):
        path.write_bytes(gzip.compress(content.getbuffer(), compresslevel=6, mtime=0))
    else:
        path.write_bytes(content.getbuffer())


def _read_header(path: Path) -> Any:
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
    nibabel: Any = import_module("nibabel")  # its type annotations are incomplete
    for header_class in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if header_class.may_contain_header(head):
            length = header_class.template_dtype.itemsize
            return header_class(head[:length], check=False)
    if nibabel.AnalyzeHeader.may_contain_header(head):
        raise CrkdError(
            f"{path} is an Analyze 7.5 header, which does not say which side is left; "
            "convert it to NIfTI"
        )
    raise ValueError("no NIfTI header")


def _voxels(path: Path, header: Any, channels: int) -> _Voxels:
    """Return where the voxels are. Raises CrkdError if the header is contradictory."""
    file, offset = path, int(header["vox_offset"])
    is_pair = bytes(header["magic"]).startswith(b"ni")
    if is_pair != path.name.lower().endswith(".hdr"):
        name = ".hdr, beside its .img" if is_pair else ".nii"
        raise CrkdError(f"{path} has the wrong suffix for its NIfTI header; end its name in {name}")
    if is_pair:
        image = data_file(path)
        if image is None:
            raise CrkdError(f"{path} needs {path.with_suffix('.img').name} beside it; copy both")
        file = image
    else:
        offset = max(offset, header.template_dtype.itemsize)
    if offset < 0:
        raise ValueError(f"the voxels start at byte {offset}")
    return _Voxels(file, offset, _shape(path, header, channels), _dtype(path, header))


def _shape(path: Path, header: Any, channels: int) -> tuple[int, ...]:
    """Return [C, *S] of the voxels. A fourth axis is C if it is a vector's, or of `channels`."""
    count = int(header["dim"][0])
    size = [int(side) for side in header["dim"][1 : 1 + count]]
    if not 2 <= count <= 7 or min(size) < 1:
        raise ValueError(f"dim is {header['dim'].tolist()}")
    is_vector = int(header["intent_code"]) == VECTOR_INTENT
    has_vectors = is_vector and (count == 4 or (count == 5 and size[3] == 1))
    vector = size.pop() if has_vectors else 1
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) == 4 and vector == 1 and size[3] == channels:
        vector = size.pop()
    if len(size) == 4:
        raise _fourth_axis(path, size[3], channels)
    if len(size) > 4:
        raise too_many_axes(path, size)
    return (vector, *size[::-1])


def _fourth_axis(path: Path, count: int, channels: int) -> CrkdError:
    """Return the error for a fourth axis that is not that of the dataset's channels."""
    if channels > 1:
        advice = f"the dataset has {channels} channels, which must be as many"
    else:
        advice = "if these are channels, list all in dataset.yaml: channels: [{name: T1}, …]"
    return CrkdError(
        f"{path} has a fourth axis of {count}: {advice}; if it is a time series, write each time "
        "point to a file"
    )


def _dtype(path: Path, header: Any) -> np.dtype[Any]:
    nibabel: Any = import_module("nibabel")
    code = int(header["datatype"])
    if code not in nibabel.nifti1.data_type_codes.dtype:
        raise ValueError(f"unknown datatype {code}")
    dtype: np.dtype[Any] = header.get_data_dtype()
    is_color = code in (RGB, RGBA)
    if not is_color and (dtype.kind not in "iuf" or dtype.itemsize > 8):
        label = nibabel.nifti1.data_type_codes.label[code]
        raise CrkdError(f"{path} has voxels of type {label}; save them as integers or float32")
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise ValueError(f"bitpix is {int(header['bitpix'])}, but datatype is {dtype}")
    return dtype


def _colors(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Turn voxels [1, *S] of three or four bytes into [3, *S]."""
    channels = np.moveaxis(array[0][..., None].view(np.uint8), -1, 0)
    if len(channels) == 4 and channels[3].min() < 255:
        raise CrkdError(f"{path} has transparent voxels; save it as RGB without alpha")
    colors: NDArray[Any] = channels[:3]
    return colors


def _scale(array: NDArray[Any], header: Any) -> NDArray[Any]:
    """Apply the scale of the header; without one, integers stay integers."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    intercept = intercept if math.isfinite(intercept) else 0.0
    is_stated = math.isfinite(slope) and slope != 0
    if not is_stated or (slope, intercept) == (1, 0) or int(header["datatype"]) in (RGB, RGBA):
        return array
    # float32 holds 16-bit values; the result is as exact as the numbers in the header.
    dtype = np.float32 if array.dtype.itemsize <= 2 else np.float64
    scaled: NDArray[Any] = array.astype(np.result_type(array, dtype))
    scaled *= slope
    scaled += intercept
    return scaled


def _geometry(header: Any) -> Geometry:
    """Return the spacing, which ITK and FSL also take from pixdim, and the stated affines."""
    count = min(int(header["dim"][0]), 3)
    unit = MM_PER_UNIT.get(int(header["xyzt_units"]) & UNIT_MASK, 1.0)
    affines = []
    for form in (header.get_sform, header.get_qform):
        affine = _stated_affine(form)
        if affine is not None:
            columns = [*range(count), 3]
            affines.append(affine[:3, columns] * unit)
    steps = [abs(float(step)) * unit for step in header["pixdim"][1 : 1 + count]]
    spacing = tuple(steps) if all(math.isfinite(step) and step > 0 for step in steps) else None
    if spacing is None and affines:
        spacing = tuple(np.linalg.norm(affines[0][:, :-1], axis=0).tolist())
    affines += [_with_spacing(affine, spacing) for affine in affines]
    return Geometry(spacing, tuple(affines), header)


def _with_spacing(affine: Affine, spacing: tuple[float, ...] | None) -> Affine:
    """Return an affine as ITK reads it: scaled to the spacing of pixdim."""
    columns = affine.copy()
    columns[:, :-1] *= np.asarray(spacing) / np.linalg.norm(affine[:, :-1], axis=0)
    return columns


def _stated_affine(form: Any) -> Affine | None:
    """Return the qform or sform of a header, or None if it states none that can be used."""
    nibabel: Any = import_module("nibabel")
    try:
        affine, code = form(coded=True)
    except (ValueError, nibabel.spatialimages.HeaderDataError):  # quaternion or pixdim
        return None
    if not code or affine is None or not np.isfinite(affine).all():
        return None
    is_regular = np.linalg.norm(affine[:3, :3], axis=0).all()
    return np.asarray(affine, np.float64) if is_regular else None


def _new_header(size: tuple[int, ...], geometry: Geometry | None) -> Any:
    """Return a little-endian header for voxels of `size`, x first, without the type."""
    nibabel: Any = import_module("nibabel")
    source = geometry.header if geometry is not None else None
    if isinstance(source, nibabel.Nifti1Header):  # NIfTI-2 is a subclass
        is_second = isinstance(source, nibabel.Nifti2Header)
        header_class = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
        header = header_class(endianness="<", check=False)
        for field in KEPT_FIELDS:
            header[field] = source[field]
        if math.prod(int(side) for side in header["dim"][1 : 1 + int(header["dim"][0])]) != (
            math.prod(size)
        ):  # a vector at every voxel: the mask has one number
            header["dim"][0] = len(size)
            header["dim"][1:] = 1
            header["dim"][1 : 1 + len(size)] = size
    else:
        fits = max(size) <= MAX_SIDE
        header_class = nibabel.Nifti1Header if fits else nibabel.Nifti2Header
        header = header_class(endianness="<")
        header.set_data_shape(size)
        if geometry is not None:
            _state_geometry(header, geometry)
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def _extension(text: bytes) -> bytes:
    """Return the bytes between header and voxels that contain `text`, filled up with spaces."""
    size = 16 * math.ceil((8 + len(text)) / 16)
    return struct.pack("<4B2i", 1, 0, 0, 0, size, CARET_CODE) + text.ljust(size - 8)


def _state_geometry(header: Any, geometry: Geometry) -> None:
    """Write the geometry of a file of another format into a new header."""
    if geometry.spacing is not None:
        header.set_zooms(geometry.spacing)
        header.set_xyzt_units("mm")
    if geometry.affines and len(geometry.affines[0]) == 3:
        affine = np.eye(4)
        affine[:3, [*range(geometry.affines[0].shape[1] - 1), 3]] = geometry.affines[0]
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1, strip_shears=True)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
