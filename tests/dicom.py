"""Small DICOM files for tests, written with pydicom."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

IN_PLANE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))  # the directions of a row, and of a column
ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's root of UIDs


def uid(*parts: object) -> str:
    """Return a UID that depends on `parts` alone."""
    return pydicom.uid.generate_uid(prefix=ROOT, entropy_srcs=[str(part) for part in parts])


def write_series(
    folder: Path,
    voxels: NDArray[Any],
    *,
    name: str = "series",
    spacing: tuple[float, float, float] = (2.0, 0.8, 0.7),
    origin: tuple[float, float, float] = (-10.0, -20.0, 30.0),
    axes: tuple[tuple[float, ...], tuple[float, ...]] = IN_PLANE,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    file_names: str = "IM{:04d}",
    first_number: int = 0,
    skip: tuple[int, ...] = (),
    compressed: bool = False,
    tags: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write voxels [z, y, x] as one CT slice per file, and return the files by z.

    Args:
        folder: Of the files.
        voxels: As stored, before rescaling.
        name: Series with the same name have the same UID.
        spacing: Millimeters along z, y, x.
        origin: Of the center of the first voxel, LPS.
        axes: Directions of x and y, LPS.
        shift: Added to the position with every slice, as a tilted gantry does.
        file_names: Numbered against the order of the slices, from `first_number` on.
        first_number: See `file_names`.
        skip: Slices that are not written.
        compressed: Write RLE.
        tags: Replace those of all files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(*axes)
    files = []
    for z, plane in enumerate(voxels):
        if z in skip:
            continue
        position = np.array(origin) + z * (spacing[0] * normal + np.array(shift))
        dataset = slice_dataset(plane, name, z)
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in position]
        dataset.ImageOrientationPatient = [f"{value:.6g}" for axis in axes for value in axis]
        dataset.PixelSpacing = [f"{spacing[1]:g}", f"{spacing[2]:g}"]
        for key, value in (tags or {}).items():
            setattr(dataset, key, value)
        file = folder / file_names.format(first_number + len(voxels) - z)
        save(dataset, file, compressed)
        files.append(file)
    return files


def slice_dataset(plane: NDArray[Any], name: str, number: int) -> Dataset:
    """Return a CT slice without a position."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = uid(name, number)
    dataset.StudyInstanceUID = uid("study", name)
    dataset.SeriesInstanceUID = uid(name)
    dataset.FrameOfReferenceUID = uid("frame", name)
    dataset.Modality = "CT"
    dataset.PatientID = "P-4711"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientBirthDate = "19700102"
    dataset.SeriesDescription = "CT thin"
    dataset.InstanceNumber = number + 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    set_pixels(dataset, plane)
    return dataset


def set_pixels(dataset: Dataset, pixels: NDArray[Any], color: str = "MONOCHROME2") -> None:
    """Set gray pixels [y, x] or [frame, y, x] of 16 bits, or colors [y, x, 3] of 8 bits."""
    is_color = color != "MONOCHROME2"
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = color
    if is_color:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2] if is_color else pixels.shape[-2:]
    bits = 8 if is_color else 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = 0 if is_color else 1
    dataset.PixelData = pixels.astype(np.uint8 if is_color else "<i2").tobytes()


def write_enhanced(
    file: Path,
    voxels: NDArray[Any],
    *,
    name: str = "enhanced",
    spacing: tuple[float, float, float] = (2.0, 0.8, 0.7),
    order: tuple[int, ...] | None = None,
) -> Path:
    """Write voxels [z, y, x] as one multi-frame MR file, its frames in `order`."""
    dataset = slice_dataset(voxels[0], name, 0)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.SOPClassUID, dataset.Modality = EnhancedMRImageStorage, "MR"
    order = order or tuple(range(len(voxels)))
    set_pixels(dataset, voxels[list(order)])
    dataset.NumberOfFrames = len(voxels)
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing = [spacing[1], spacing[2]]
    orientation.ImageOrientationPatient = [value for axis in IN_PLANE for value in axis]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for z in order:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, spacing[0] * z]
        group.PlanePositionSequence = [position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return save(dataset, file)


def write_object(
    file: Path, modality: str, sop_class: str, tags: Mapping[str, Any] | None = None
) -> Path:
    """Write an object without pixels, such as a report."""
    dataset = slice_dataset(np.zeros((1, 1)), modality, 0)
    for key in ("Rows", "Columns", "PixelData"):
        delattr(dataset, key)
    dataset.SOPClassUID, dataset.Modality = sop_class, modality
    for key, value in (tags or {}).items():
        setattr(dataset, key, value)
    return save(dataset, file)


def write_study(folder: Path, voxels: NDArray[Any], descriptions: Mapping[str, str]) -> None:
    """Write a series of the same study into a subfolder for each description."""
    for subfolder, description in descriptions.items():
        tags = {
            "SeriesDescription": description,
            "Modality": "MR",
            "SOPClassUID": MRImageStorage,
            "StudyInstanceUID": uid(folder.name),
            "PatientID": f"id of {folder.name}",
        }
        write_series(folder / subfolder, voxels, name=f"{folder.name} {subfolder}", tags=tags)


def save(dataset: Dataset, file: Path, compressed: bool = False) -> Path:
    """Write a dataset as a DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    file.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(file, enforce_file_format=True)
    return file
