"""crkd prepare-data with descriptions: used, printed, stored, and printed as JSON."""

import json
import tarfile
import zipfile

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from crkd_cli.data.description import Channel, read_description
from crkd_cli.data.store import Store


@pytest.fixture
def store(tmp_path):
    """store() returns the prepared dataset `mine`."""
    return lambda: Store(tmp_path / "data/prepared/mine")


def printed_description(err: str) -> str:
    _, _, rest = err.partition("and edit it):\n")
    lines = [line[2:] for line in rest.splitlines() if line.startswith("  ")]
    return "\n".join(lines)


def test_the_printed_description_gives_the_same_store(prepare_data, raw_folder, store):
    for case in "ab":
        (raw_folder / f"labels/{case}.png").rename(raw_folder / f"labels/{case}_mask.png")
    for case in "cd":
        (raw_folder / f"labels/{case}.png").rename(raw_folder / f"labels/{case}_mask_1.png")
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 0
    text = printed_description(err)
    assert text.splitlines() == [
        "channels: [{name: image, modality: gray}]",
        "classes: {class 1: 1}",
        "images: 'images/{name}.png'",
        "labels: 'labels/{name}_mask*.png'",
        "plan: {orientation: native, spacing: native, network: 2D, resize: [32, 32], batch: 12}",
    ]
    first = store()
    assert (first.root / "dataset.yaml").read_text() == text + "\n"
    assert read_description(first.root / "dataset.yaml") == first.spec.description
    (raw_folder / "dataset.yaml").write_text(text)
    code, err = prepare_data("mine", "--source", raw_folder)
    assert printed_description(err) == text
    assert store().digest == first.digest
    assert store().spec == first.spec


def test_one_line_is_changed(prepare_data, raw_folder, store):
    (raw_folder / "images").rename(raw_folder / "scans")
    description = 'images: "scans/*.png"\nlabels: "labels/{name}.png"\npatients: "{patient}*"\n'
    (raw_folder / "dataset.yaml").write_text(f"{description}spacing: [2, 0.5]\n")
    (raw_folder / "dataset.json").write_text("{}")
    code, err = prepare_data("mine", "--source", raw_folder)
    assert code == 0, err
    assert "note: left out (dataset.yaml is read instead): dataset.json" in err
    assert store().cases["a"].native_spacing_mm == (2.0, 0.5)
    assert store().cases["a"].group == "a"
    code, err = prepare_data("mine", "--source", raw_folder, "--spacing", "3")
    assert store().cases["a"].native_spacing_mm == (3.0, 3.0)
    assert store().spec.description.spacing == (3.0, 3.0)


def test_nnunet_folders(prepare_data, tmp_path, store, rng):
    root = tmp_path / "Dataset007"
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir(parents=True)
    for case in "ab":
        image = nib.Nifti1Image(rng.normal(size=(8, 8, 4)).astype(np.float32), np.eye(4))
        label = nib.Nifti1Image(rng.integers(0, 2, (8, 8, 4)).astype(np.uint8), np.eye(4))
        nib.save(image, root / f"imagesTr/{case}_0000.nii.gz")
        nib.save(image, root / f"imagesTs/{case}t_0000.nii.gz")
        nib.save(label, root / f"labelsTr/{case}.nii.gz")
    tree = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(tree))
    code, err = prepare_data("mine", "--source", root)
    assert code == 0, err
    assert "channel CT (CT): values " in err
    assert ", clipped to " in err
    assert "the test images of nnU-Net; predict their masks with crkd predict" in err
    spec = store().spec
    assert spec.description.channels == (Channel(name="CT", modality="CT"),)
    assert (spec.channels[0].modality, list(store().cases)) == ("CT", ["a", "b"])
    assert spec.description.images == "imagesTr/{name}_0000.nii.gz"


def test_mistakes_in_a_description(prepare_data, raw_folder):
    mistakes = {
        "clases: {liver: 1}": (2, "dataset.yaml: unknown key clases; did you mean classes?"),
        "spacing: [1, 1, 1]": (2, "the described spacing has 3 numbers, but mine is 2D: give 2"),
        "channels: [{modality: RGB}]": (
            1,
            "most images are not 2D images with colors",
        ),
        "channels: [{name: T1}, {name: T2}]": (1, "1 channel, but the dataset mine has 2"),
        'images: "img/*.png"': (1, "matches the pattern images: 'img/*.png'; correct it"),
        'labels: "labels/{name}_x.png"': (1, "matches the pattern labels: 'labels/{name}_x.png'"),
        "patients: who.csv": (1, "who.csv does not exist; correct patients in the"),
        'patients: "{patient}_*"': (1, "does not match 4 images"),
    }
    for text, (expected, message) in mistakes.items():
        (raw_folder / "dataset.yaml").write_text(text)
        code, err = prepare_data("mine", "--source", raw_folder)
        assert (code, message in err) == (expected, True), err
        assert err.splitlines()[-1].startswith("error: ")


def test_public_datasets_have_a_fixed_description(prepare_data, rng, tmp_path):
    for case in ("patient001_frame01", "patient001_frame02"):
        with h5py.File(tmp_path / f"{case}.h5", "w") as file:
            file["image"] = rng.random((3, 8, 8))
            file["label"] = rng.integers(0, 4, (3, 8, 8)).astype(np.uint8)
    (tmp_path / "dataset.yaml").write_text("classes: {LV: 3}")
    code, err = prepare_data("acdc", "--source", tmp_path)
    assert code == 0
    assert "note: left out (the description of acdc is fixed): dataset.yaml" in err
    assert "channels:" not in err
    description = read_description(tmp_path / "data/prepared/acdc/dataset.yaml")
    assert description.classes["left ventricle"] == 3


def test_json(cli, raw_folder, tmp_path):
    (raw_folder / "labels/d.png").unlink()
    (raw_folder / "labels/e.png").symlink_to("gone")
    command = ["prepare-data", "mine", "--source", raw_folder, "--data-root", tmp_path / "data"]
    result = cli(*command, "--json", "--check")
    assert result.exit_code == 1
    tree = json.loads(result.stdout)
    statuses = {entry["file"]: entry["status"] for entry in tree["files"]}
    assert (statuses["images/d.png"], statuses["labels/e.png"]) == ("unlabeled", "refused")
    (error,) = tree["errors"]
    assert error["where"] == "labels/e.png"
    assert tree["store"] is None
    (raw_folder / "labels/e.png").unlink()
    result = cli(*command, "--json")
    assert result.exit_code == 0
    tree = json.loads(result.stdout)
    assert tree["description"]["labels"] == "labels/{name}.png"
    assert tree["cases"][0] == {
        "id": "a",
        "patient": "a",
        "images": [{"file": "images/a.png", "channel": None}],
        "labels": [{"file": "labels/a.png", "class": None}],
    }
    assert tree["notices"] == ["cases without a label, used as unlabeled: 1 of 4"]
    assert tree["store"] == str(tmp_path / "data/prepared/mine")

    names = ["prepare-data", "mine", "--data-root", str(tmp_path / "data")]
    tree = json.loads(cli(*names, "--json", "--check").stdout)  # without the raw files
    assert (tree["raw"], tree["store"]) == (None, str(tmp_path / "data/prepared/mine"))
    # Of four images, and of three labels at two sizes and with their foreground.
    assert tree["arrays"] == 13


def test_json_if_the_dataset_as_a_whole_is_refused(cli, raw_folder, tmp_path):
    (raw_folder / "images").rename(raw_folder / "pictures")
    result = cli("prepare-data", "mine", "--source", raw_folder, "--json")
    assert result.exit_code == 1
    tree = json.loads(result.stdout)
    assert tree["errors"][0]["what"].startswith(f"no images/ in {raw_folder}")
    assert len(tree["files"]) == 8


def test_check_lists_the_files(cli, raw_folder, tmp_path):
    (raw_folder / "labels/x.png").write_bytes((raw_folder / "labels/a.png").read_bytes())
    (raw_folder / "labels/d.png").write_bytes(b"x")
    result = cli("prepare-data", "mine", "--source", raw_folder, "--check")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "used: 4 images, 3 labels",
        "left out (no image has the name of this label): 1 file",
        "  labels/x.png",
        "refused (see the problems): 1 file",
        "  labels/d.png",
    ]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_with_one_folder_at_the_top(prepare_data, raw_folder, tmp_path, kind, store):
    archive = tmp_path / f"set.{kind}"
    files = [path for path in raw_folder.rglob("*") if path.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in files:
                file.write(path, f"My set/{path.relative_to(raw_folder)}")
    else:
        with tarfile.open(archive, "w:gz") as file:
            for path in files:
                file.add(path, f"My set/{path.relative_to(raw_folder)}")
    code, err = prepare_data("mine", "--source", archive)
    assert code == 0, err
    assert "note: images and labels are in My set/" in err
    assert store().cases["a"].source == "My set/images/a.png"
    assert store().spec.description.images == "My set/images/{name}.png"


def test_masks_are_no_images_of_a_color_dataset(prepare_data, tmp_path, rng, store):
    root = tmp_path / "photos"
    root.mkdir()
    for case in "ab":
        photo = rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(photo).save(root / f"{case}.png")
        Image.fromarray(photo[..., 0] // 128).save(root / f"{case}_mask.png")
    code, err = prepare_data("mine", "--source", root)
    assert code == 0, err
    assert [case.labeled for case in store().index.cases] == [True, True]
    assert store().spec.description.channels == (Channel(modality="RGB"),)
