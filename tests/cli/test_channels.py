"""From a folder with several channels to masks, as a user types it."""

import json

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([1.5, 1.0, 2.0, 1.0])
SHAPE = (20, 18, 16)  # x, y, z


@pytest.mark.slow
def test_two_channels_from_files_to_masks(cli, tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("raw/imagesTr", "raw/labelsTr", "new"):
        (tmp_path / folder).mkdir(parents=True)
    for case in "abcde":
        label = np.zeros(SHAPE, np.uint8)
        label[4:14, 5:12, 3:10] = 5
        for number, contrast in enumerate((1, -2)):
            image = nib.Nifti1Image(rng.normal(contrast * label.astype(float), 1), AFFINE)
            nib.save(image, f"raw/imagesTr/{case}_{number:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label, AFFINE), f"raw/labelsTr/{case}.nii.gz")
    names = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "cyst": 5}}
    (tmp_path / "raw/dataset.json").write_text(json.dumps(names))

    def run(*command):
        result = cli(*command)
        assert result.exit_code == 0, result.stderr
        return result.stderr

    text = run("prepare-data", "cysts", "--source", "raw")
    assert "channels: [{name: T1, modality: MR}, {name: FLAIR, modality: MR}]" in text
    assert "images: {T1: 'imagesTr/{name}_0000.nii.gz', FLAIR:" in text
    run("make-splits", "cysts", "--labeled", "1")
    settings = [f"--set={x}" for x in ("train.steps=2", "model.widths=[4, 4, 8, 8, 8]")]
    run("train", "--dataset", "cysts", "--labeled", "1", "--out", "run", *settings)
    run("evaluate", "run")

    for number in (0, 1):
        name = f"a_{number:04d}.nii.gz"
        (tmp_path / "new" / name).write_bytes((tmp_path / "raw/imagesTr" / name).read_bytes())
    vectors = np.stack([nib.load(f"new/a_{n:04d}.nii.gz").get_fdata() for n in (0, 1)], axis=-1)
    nib.save(nib.Nifti1Image(vectors, AFFINE), "b.nii.gz")
    run("predict", "new", "--checkpoint", "run", "--overlay")
    run("predict", "b.nii.gz", "--checkpoint", "run", "--out", "masks")
    numbered, vector = (nib.load(name) for name in ("new-masks/a.nii.gz", "masks/b.nii.gz"))
    assert (tmp_path / "new-masks/overlays/a.png").is_file()
    np.testing.assert_array_equal(numbered.get_fdata(), vector.get_fdata())
    for mask in (numbered, vector):
        assert mask.shape == SHAPE
        np.testing.assert_array_equal(mask.affine, AFFINE)

    names["channel_names"] = {"0": "FLAIR", "1": "T1"}
    (tmp_path / "raw/dataset.json").write_text(json.dumps(names))
    run("prepare-data", "cysts", "--source", "raw")
    result = cli("evaluate", "run")
    assert result.exit_code == 1
    assert "the list of channels was T1, FLAIR, now FLAIR, T1" in result.stderr
