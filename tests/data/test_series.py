"""DICOM folders become cases: one per series, grouped by patient, without the names of patients."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.data.inventory import FileRecord, list_files
from crkd_cli.data.prepare import prepare
from crkd_cli.data.raw import dicom
from crkd_cli.data.series import find_series
from crkd_cli.data.sources.folder import Folder
from crkd_cli.errors import CrkdError
from tests.dicom import (
    save,
    set_pixels,
    slice_dataset,
    uid,
    write_enhanced,
    write_object,
    write_series,
    write_study,
)

SHAPE = (3, 16, 16)
TO_RAS = np.diag([-0.7, -0.8, 2.0, 1.0])
TO_RAS[:3, 3] = 10, 20, 30
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"


@pytest.fixture
def voxels(rng) -> np.ndarray:
    return rng.integers(0, 3000, SHAPE)


def write_label(file: Path, label: np.ndarray) -> None:
    """Write a label [z, y, x] of a series as RAS, as dcm2niix and other tools do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(label.T.astype(np.uint8), TO_RAS)
    nib.save(nib.as_closest_canonical(image), file)


def cases(root: Path) -> dict[str, tuple]:
    """Return (group, number of slices of every channel, labels) by case id."""
    return {
        case.id: (
            case.group,
            [len(image.slices) for image in case.images],
            [label.path.name for label in case.labels],
        )
        for case in Folder().find(root)
    }


@pytest.mark.parametrize("images", ["images", ""])
def test_a_folder_is_a_case_and_a_patient_a_group(tmp_path, voxels, images):
    for case, patient in (("a", "id 1"), ("b", "id 1"), ("c", "id 2")):
        tags = {"PatientID": patient}
        write_series(tmp_path / images / case, voxels, name=case, tags=tags)
    write_label(tmp_path / "labels" / "a.nii.gz", voxels > 2000)
    found = cases(tmp_path)
    groups = [group for group, *_ in found.values()]
    assert [found[case][1:] for case in "abc"] == [([3], ["a.nii.gz"]), ([3], []), ([3], [])]
    assert groups[0] == groups[1] != groups[2]
    assert all(group.startswith("patient-") for group in groups)


def test_a_table_of_patients_names_folders(tmp_path, voxels):
    for case in ("a", "b", "Doe 1"):
        write_series(tmp_path / "images" / case, voxels, name=case)
    write_label(tmp_path / "labels" / "a.nii.gz", voxels > 2000)
    source = Folder()
    source.find(tmp_path)
    assert any("the same patient ID" in note for note in source.notes)
    (tmp_path / "patients.csv").write_text("image,patient\na,1\nimages/b,1\nDoe 1,Jane")
    assert [case.group for case in Folder().find(tmp_path)][:2] == ["1", "1"]
    (case,) = [case for case in Folder().find(tmp_path) if case.is_private]
    assert case.group == case.id


def test_slices_are_sorted_along_the_normal(tmp_path, voxels):
    files = write_series(tmp_path / "a", voxels)
    (file,) = find_series(list_files(tmp_path), FileRecord()).files
    assert file.dicom is not None
    assert list(file.dicom.images[0].slices) == files


def test_what_is_left_out_is_named(tmp_path, voxels):
    write_series(tmp_path / "images" / "a", voxels)
    write_object(tmp_path / "images" / "a" / "report", "SR", REPORT)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(tmp_path / "images" / "a", voxels[:1], name="scout", first_number=9, tags=scout)
    capture = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None}
    write_series(tmp_path / "images" / "a", voxels[:1], name="sc", first_number=20, tags=capture)
    write_label(tmp_path / "labels" / "a.nii.gz", voxels > 2000)
    source = Folder()
    assert [case.id for case in source.find(tmp_path)] == ["a"]
    reasons = {path.name: reason for path, reason in source.files.left_out.items()}
    assert reasons == {
        "report": "a DICOM object without an image: Basic Text SR Storage",
        "IM0010": "a DICOM localizer (scout view)",
        "IM0021": "a DICOM secondary capture beside volumes",
    }


def test_series_in_one_folder_are_cases_or_chosen(tmp_path, voxels):
    for number, name in enumerate(("thin", "thick")):
        tags = {"SeriesDescription": f"CT {name}"}
        first = 10 * number
        write_series(tmp_path / "images/a", voxels, name=name, tags=tags, first_number=first)
    write_label(tmp_path / "labels" / "a.nii.gz", voxels > 2000)
    found = find_series(list_files(tmp_path), FileRecord())
    assert len(found.series) == 2
    source = Folder()
    source.find(tmp_path)
    (reason,) = source.files.refused.values()
    assert "named like a folder with 2 DICOM series (series-" in reason
    report = prepare("scans", Folder(), tmp_path, tmp_path / "store", progress, check_only=True)
    remarks = {finding.what.split(":")[0] for finding in report.findings[1:]}
    assert remarks == {"DICOM series 'CT thick'", "DICOM series 'CT thin'"}
    for chosen in ("ct THIN", "*thin", uid("thin")):
        (tmp_path / "dataset.yaml").write_text(f"series: '{chosen}'")
        assert [case[1:] for case in cases(tmp_path).values()] == [([3], ["a.nii.gz"])]
    (tmp_path / "dataset.yaml").write_text("series: MR")
    with pytest.raises(CrkdError, match=r"matches series: 'MR'; there are 'CT thick', 'CT thin'"):
        cases(tmp_path)


def test_the_series_of_a_study_are_channels(tmp_path, voxels):
    for case in ("a", "b"):
        write_study(tmp_path / "images" / case, voxels, {"x": "FLAIR", "y": "T1 MPRAGE", "z": "T2"})
        write_label(tmp_path / "labels" / f"{case}.nii.gz", voxels > 2000)
    (tmp_path / "dataset.yaml").write_text("series: {t1: 'T1*', flair: FLAIR}")
    source = Folder()
    found = source.find(tmp_path)
    assert [case.id for case in found] == ["a", "b"]
    assert source.description.images == "images/{name}"
    names = [(image.channel, image.path.parent.name) for image in found[0].images]
    assert names == [("t1", "y"), ("flair", "x")]
    spec = source.spec("mine", found)
    volume = source.open_image(found[0].images, spec)
    assert [channel.name for channel in spec.channels] == ["t1", "flair"]
    np.testing.assert_array_equal(volume.array, [voxels - 1024] * 2)

    for file in (tmp_path / "images/b/x").iterdir():
        file.unlink()
    source = Folder()
    assert [case.id for case in source.find(tmp_path)] == ["a"]
    (reason,) = source.files.refused.values()
    assert reason.startswith("images/b/y has no DICOM series for the channel flair ('FLAIR'), only")


def test_echoes_of_a_series_are_cases(tmp_path, voxels):
    for number, echo in enumerate(("10", "20")):
        tags = {"EchoTime": echo, "SeriesInstanceUID": uid("echoes")}
        write_series(tmp_path, voxels, name=echo, tags=tags, first_number=10 * number)
    found = find_series(list_files(tmp_path), FileRecord())
    assert [(one.part, one.size) for one in found.series] == [
        ("10", (16, 16, 3)),
        ("20", (16, 16, 3)),
    ]
    assert len({one.pseudonym for one in found.series}) == 2


def test_a_copied_slice_is_refused(tmp_path, voxels):
    files = write_series(tmp_path / "a", voxels)
    files[0].with_name("copy").write_bytes(files[0].read_bytes())
    (file,) = find_series(list_files(tmp_path), FileRecord()).files
    assert file.problem == "contains a slice twice (a/IM0003 and a/copy); remove one of them"


def test_a_series_beside_a_damaged_file_is_refused(tmp_path, voxels):
    """It may be the last slice, so that nothing else shows that one is missing."""
    files = write_series(tmp_path / "a", voxels)
    files[-1].write_bytes(files[-1].read_bytes()[:300])
    write_series(tmp_path / "b", voxels, name="b")
    found = find_series(list_files(tmp_path), FileRecord())
    assert [(file.name, file.problem) for file in found.files] == [
        ("a", "may lack a slice, because a/IM0001 is damaged; copy it again"),
        ("a/IM0001", "is a damaged DICOM file; copy it again"),
        ("b", ""),
    ]


def test_a_file_that_cannot_be_read_is_no_label(tmp_path, voxels):
    write_series(tmp_path / "images" / "a", voxels)
    write_label(tmp_path / "labels" / "a.nii.gz", voxels > 2000)
    os.mkfifo(tmp_path / "images" / "a" / "x.dcm")
    source = Folder()
    source.find(tmp_path)
    assert list(source.files.refused.values()) == [
        "images/a/x.dcm is not a regular file; remove it"
    ]


def test_descriptions_are_shown_without_patients(tmp_path, voxels):
    for name, description in (("a", "Thin Doe^Jane"), ("b", "x\x1b[31m")):
        write_series(tmp_path / name, voxels, name=name, tags={"SeriesDescription": description})
    found = find_series(list_files(tmp_path), FileRecord())
    assert [line.partition(":")[0] for line in found.lines] == [
        "DICOM series with the name or ID of the patient as description",
        r"DICOM series 'x\x1b[31m'",
    ]
    with pytest.raises(CrkdError, match="no DICOM series has a description") as error:
        find_series(list_files(tmp_path), FileRecord(), "none")
    assert "Doe" not in str(error.value)


def test_single_files_are_cases(tmp_path, voxels, rng):
    """Multi-frame files, and pictures of one series."""
    write_enhanced(tmp_path / "volumes" / "v1.dcm", voxels)
    write_enhanced(tmp_path / "volumes" / "v2", voxels)
    for name in ("left", "right"):
        dataset = slice_dataset(voxels[0], "views", 0)
        dataset.SOPInstanceUID = uid(name)
        set_pixels(dataset, rng.integers(0, 255, (8, 9, 3)), "RGB")
        save(dataset, tmp_path / "pictures" / f"{name}.dcm")
    found = find_series(list_files(tmp_path), FileRecord())
    assert [file.name for file in found.files] == [
        *("pictures/left.dcm", "pictures/right.dcm", "volumes/v1.dcm", "volumes/v2"),
    ]
    assert [one.size for one in found.series] == [(9, 8), (9, 8), (16, 16, 3), (16, 16, 3)]


def test_series_without_uids_are_patients_of_their_own(tmp_path, voxels):
    """As after a thorough anonymization. Pseudonyms must differ, or masks would be confused."""
    names = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID")
    for number in range(2):
        removed = dict.fromkeys(names, "")
        write_series(tmp_path / "images" / f"a{number}", voxels + number, tags=removed)
    write_label(tmp_path / "labels" / "a0.nii.gz", voxels > 2000)
    assert len({group for group, *_ in cases(tmp_path).values()}) == 2
    alone = [
        find_series(list_files(tmp_path / "images" / f"a{number}"), FileRecord()).files[0]
        for number in range(2)
    ]
    assert alone[0].private_id != alone[1].private_id


def test_pydicom_is_optional(tmp_path, voxels, monkeypatch, cli):
    write_series(tmp_path / "images" / "a", voxels)
    write_label(tmp_path / "labels" / "a.nii.gz", voxels > 2000)
    monkeypatch.setattr(dicom, "is_available", lambda: False)
    result = cli("prepare-data", "mine", "--source", tmp_path, "--data-root", tmp_path / "data")
    assert result.exit_code == 1
    (error,) = [line for line in result.stderr.splitlines() if "needs pydicom" in line]
    assert 'more) is DICOM, which needs pydicom; run: pip install "crkd[dicom]"' in error


def test_no_patient_is_named(tmp_path, voxels, cli):
    """Neither in the store nor in the output, although folders and files have their names."""
    private = {
        "PatientID": "PID-90125",
        "PatientName": "Mustermann^Erika",
        "PatientBirthDate": "19641231",
        "InstitutionName": "Charite Mitte",
        "AccessionNumber": "ACC77001",
    }
    root = tmp_path / "raw"
    for number, folder in enumerate(("pid-90125 a", "Erika", "clean")):
        tags = {**private, "SeriesDescription": "Thorax"}
        file_names = "mustermann-{:d}.dcm" if folder == "clean" else "{:d}"
        write_series(
            root / "images" / folder, voxels, name=folder, tags=tags, file_names=file_names
        )
        if number < 2:
            write_label(root / "labels" / f"{folder}.nii.gz", voxels > 2000)
    write_object(root / "images" / "Erika" / "report", "SR", REPORT, private)
    write_label(root / "labels" / "mustermann_2.nii.gz", voxels > 2000)  # of no image
    write_label(root / "Erika" / "deeper" / "x.nii.gz", voxels > 2000)  # neither
    store = tmp_path / "prepared" / "mine"
    options = ("prepare-data", "mine", "--source", str(root), "--data-root", str(tmp_path))
    outputs = [cli(*options, "--check"), cli(*options, "--json"), cli(*options)]
    shown = "".join(result.stdout + result.stderr for result in outputs)
    assert all(result.exit_code == 0 for result in outputs), shown
    stored = "".join(
        f"{path} {path.read_bytes().decode('latin-1')}" for path in sorted(store.rglob("*.*"))
    )
    for text in (shown.replace(str(tmp_path), ""), stored.replace(str(tmp_path), "")):
        for word in ("90125", "mustermann", "erika", "19641231", "charite", "acc77001"):
            assert word not in text.lower(), word
        for name in ("pid-90125 a", "Erika", "clean"):
            assert uid(name) not in text
    index = json.loads((store / "index.json").read_text())
    assert len({case["group"] for case in index["cases"]}) == 1
    assert all(case["id"].startswith("series-") for case in index["cases"])
    assert "Thorax" in shown
    assert "Thorax" not in stored


@pytest.mark.parametrize("images", ["images/", ""])
def test_a_label_may_lie_beside_a_series(tmp_path, voxels, images):
    for case, folder in (("a", "a"), ("b", "b/DICOM")):
        write_series(tmp_path / images / folder, voxels, name=case)
        write_label(tmp_path / images / case / "liver.nii.gz", voxels > 2000)
    assert [(id, *case[1:]) for id, case in cases(tmp_path).items()] == [
        ("a", [3], ["liver.nii.gz"]),
        ("b", [3], ["liver.nii.gz"]),
    ]


def test_folders_of_series_may_be_nested(tmp_path, voxels):
    for case in ("a", "b"):
        tags = {"PatientID": case}
        for name in ("thin", "thick"):
            folder = tmp_path / "scans" / case / "study 1" / name
            series_tags = {**tags, "SeriesDescription": name}
            write_series(folder, voxels, name=f"{case} {name}", tags=series_tags)
        write_label(tmp_path / "masks" / f"{case}.nii.gz", voxels > 2000)
    source = Folder()
    assert [case.id for case in source.find(tmp_path)] == [
        *("a_study 1_thick", "a_study 1_thin", "b_study 1_thick", "b_study 1_thin")
    ]
    assert "with 2 DICOM series (a_" in source.files.refused[tmp_path / "masks" / "a.nii.gz"]
    (tmp_path / "dataset.yaml").write_text("series: thin")
    assert {id: case[1:] for id, case in cases(tmp_path).items()} == {
        "a": ([3], ["a.nii.gz"]),
        "b": ([3], ["b.nii.gz"]),
    }
