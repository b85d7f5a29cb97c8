"""Prediction: every format keeps name, size and geometry; masks are the network's labels."""

import errno
import os
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.cases import ImageFile
from crkd_cli.data.description import Description
from crkd_cli.data.raw import pictures
from crkd_cli.data.sources import SOURCES
from crkd_cli.data.store import ChannelInfo, DatasetSpec, numbered_classes
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.inferer import Inferer
from crkd_cli.inference.overlay import draw_overlay
from crkd_cli.inference.predict import predict
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint

# Rotated about z by about 37°, with y pointing down: not a default of any writer.
DIRECTION = (0.8, 0.6, 0.0, 0.6, -0.8, 0.0, 0.0, 0.0, -1.0)
SPACING, ORIGIN = (0.7, 1.3, 4.5), (-12.5, 33.0, 101.25)


def flat(name: str = "flat", channels: int = 1, intensity: str = "minmax") -> DatasetSpec:
    return DatasetSpec(
        name=name,
        source="folder",
        classes=numbered_classes(("background", "disc")),
        channels=(ChannelInfo(modality="RGB" if channels == 3 else "gray", intensity=intensity),),
        dims=2,
    )


SOLID = DatasetSpec(
    name="solid",
    source="folder",
    classes=numbered_classes(("background", "ball")),
    channels=(ChannelInfo(modality="MR", intensity="zscore"),),
    dims=3,
)


def quiet(line: str) -> None:
    """Ignore notices."""


def run(source: Path, checkpoint: Path, **options):
    return predict(source, [checkpoint], quiet, progress, **options)


def expected(image: Path, checkpoint: Path) -> np.ndarray:
    """Return the labels that the checkpoint's network predicts for this file."""
    loaded = load_checkpoint(checkpoint)
    cpu = torch.device("cpu")
    source = SOURCES["folder"]()
    opened = source.open_image((ImageFile(image),), loaded.spec)
    stored = source.finish(opened, image, loaded.spec)
    inferer = Inferer([load_predictor(loaded, cpu)], loaded.config.data.frame, loaded.spec, cpu)
    return inferer(stored.array, stored.native_size)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    "frame", [Frame(patch=(16, 16, 16)), Frame(resize=(32, 32))], ids=["3D", "slices"]
)
def test_medical_formats_keep_their_geometry(scans, make_checkpoint, rng, suffix, frame):
    image = sitk.GetImageFromArray(rng.normal(100, 20, (9, 21, 34)).astype(np.int16))
    image.SetDirection(DIRECTION)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    file = scans / f"scan one{suffix}"
    sitk.WriteImage(image, str(file))
    checkpoint = make_checkpoint(SOLID, frame)
    result = run(scans, checkpoint)
    assert (result.written, result.failures) == (1, [])
    mask = sitk.ReadImage(str(scans.with_name("scans-masks") / file.name))
    assert mask.GetSize() == (34, 21, 9)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSpacing() == pytest.approx(SPACING, abs=1e-5)
    assert mask.GetOrigin() == pytest.approx(ORIGIN, abs=1e-4)
    assert mask.GetDirection() == pytest.approx(DIRECTION, abs=1e-6)
    labels = sitk.GetArrayFromImage(mask)
    assert np.array_equal(labels, expected(file, checkpoint))
    assert 0.02 < labels.mean() < 0.98


def gray16(file: Path, rng) -> None:
    Image.fromarray(rng.integers(0, 65535, (37, 53)).astype(np.uint16)).save(file)


def gray8(file: Path, rng) -> None:
    Image.fromarray(rng.integers(0, 255, (37, 53)).astype(np.uint8)).save(file)


@pytest.mark.parametrize(
    ("name", "write", "mask_name"),
    [
        ("odd.png", gray8, "odd.png"),
        ("photo.jpg", gray8, "photo.png"),
        ("photo.JPEG", gray8, "photo.png"),
        ("micro.tif", gray16, "micro.tif"),
        ("deep.png", gray16, "deep.png"),
    ],
)
def test_pictures_keep_name_and_size(scans, make_checkpoint, rng, name, write, mask_name):
    write(scans / name, rng)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    run(scans, checkpoint)
    files = [file.name for file in scans.with_name("scans-masks").iterdir()]
    assert files == [mask_name]
    labels = np.asarray(Image.open(scans.with_name("scans-masks") / mask_name))
    assert labels.shape == (37, 53)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected(scans / name, checkpoint))
    assert 0.02 < labels.mean() < 0.98


def test_color_pictures(scans, make_checkpoint, rng):
    Image.fromarray(rng.integers(0, 255, (41, 29, 3)).astype(np.uint8)).save(scans / "color.jpg")
    checkpoint = make_checkpoint(flat(channels=3, intensity="uint8"), Frame(resize=(32, 32)))
    run(scans, checkpoint)
    labels = np.asarray(Image.open(scans.with_name("scans-masks") / "color.png"))
    assert np.array_equal(labels, expected(scans / "color.jpg", checkpoint))


@pytest.mark.parametrize(
    ("name", "orientation"),
    [
        ("turned.jpg", 6),
        pytest.param("turned.jpg", 3, marks=pytest.mark.slow),
        pytest.param("turned.jpg", 5, marks=pytest.mark.slow),
        pytest.param("turned.tif", 3, marks=pytest.mark.slow),
        pytest.param("turned.tif", 6, marks=pytest.mark.slow),
    ],
)
def test_masks_lie_on_pictures_as_viewers_show_them(scans, make_checkpoint, rng, name, orientation):
    """Upside down, transposed, and a camera on its side: as for the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = rng.integers(0, 255, (41, 29)).astype(np.uint8)
    pixels[:20] //= 4
    Image.fromarray(pixels).save(scans / name, exif=exif)
    if name == "turned.jpg":  # compressed with loss
        with Image.open(scans / name) as picture:
            pixels = np.asarray(picture)
    turned = {3: np.rot90(pixels, 2), 5: pixels.T, 6: np.rot90(pixels, -1)}[orientation]
    Image.fromarray(np.ascontiguousarray(turned)).save(scans / "upright.png")
    result = run(scans, make_checkpoint(flat(), Frame(resize=(32, 32))))
    assert (result.written, result.failures) == (2, [])
    masks = []
    for file in (Path(name).with_suffix(".png" if "jpg" in name else ".tif"), "upright.png"):
        with Image.open(result.folder / file) as mask:
            assert mask.getexif().get(0x0112, 1) == 1
            masks.append(np.asarray(mask))
    np.testing.assert_array_equal(*masks)
    assert masks[0].shape == ((41, 29) if orientation == 3 else (29, 41))
    assert not np.array_equal(masks[0], masks[0][::-1, ::-1])


@pytest.mark.parametrize("dims", [2, 3])
def test_h5(scans, make_checkpoint, rng, dims):
    shape = (18, 27, 22)[:dims]
    with h5py.File(scans / "case.h5", "w") as file:
        file["image"] = rng.random(shape).astype(np.float32)
    checkpoint = make_checkpoint(flat() if dims == 2 else SOLID, Frame(patch=(16,) * dims))
    run(scans / "case.h5", checkpoint)
    with h5py.File(scans.with_name("scans-masks") / "case.h5") as file:
        assert np.array_equal(file["label"][()], expected(scans / "case.h5", checkpoint))


def test_a_tiff_with_several_pages_is_a_volume(scans, make_checkpoint, rng):
    pages = [Image.fromarray(rng.integers(0, 255, (21, 30)).astype(np.uint8)) for _ in range(5)]
    pages[0].save(scans / "stack.tif", save_all=True, append_images=pages[1:])
    run(scans, make_checkpoint(SOLID, Frame(patch=(16, 16, 16))))
    with Image.open(scans.with_name("scans-masks") / "stack.tif") as mask:
        assert (mask.n_frames, mask.size) == (5, (30, 21))


def test_masks_of_case_folders_are_in_the_same_folders(scans, make_checkpoint, rng):
    for name in ("ann", "ben"):
        (scans / name).mkdir()
        gray8(scans / name / "t1.png", rng)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    out = scans / "out"
    (out / "ben").mkdir(parents=True)
    leftover = out / "ben" / ".tmp-abcdefgh-t1.png"
    leftover.touch()
    result = run(scans, checkpoint, out=out, options=PredictOptions(overlays=True))
    assert (result.written, result.failures) == (2, [])
    for name in ("ann", "ben"):
        with Image.open(out / name / "t1.png") as mask:
            assert mask.size == (53, 37)
    assert sorted(path.parent.name for path in (out / "overlays").rglob("*.png")) == ["ann", "ben"]
    assert not leftover.exists()


def test_the_file_is_read_once_for_mask_and_overlay(scans, make_checkpoint, rng, monkeypatch):
    gray8(scans / "a.png", rng)
    source = SOURCES["folder"]
    open_image = source.open_image

    def open_and_remove(self, images, spec):
        volume = open_image(self, images, spec)
        images[0].path.unlink()
        return volume

    monkeypatch.setattr(source, "open_image", open_and_remove)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    result = run(scans, checkpoint, options=PredictOptions(overlays=True))
    assert (result.written, result.failures) == (1, [])


def test_existing_masks_are_skipped(scans, make_checkpoint, rng):
    for name in ("a.png", "b.png"):
        gray8(scans / name, rng)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    out = scans.with_name("elsewhere")
    assert run(scans / "a.png", checkpoint, out=out).written == 1
    result = run(scans, checkpoint, out=out)
    assert (result.written, result.skipped) == (1, 1)
    # The masks exist, their overlays do not yet.
    assert run(scans, checkpoint, out=out, options=PredictOptions(overlays=True)).written == 2
    assert run(scans, checkpoint, out=out, options=PredictOptions(overwrite=True)).written == 2


def test_bad_files_do_not_stop_the_others(scans, make_checkpoint, rng):
    gray8(scans / "good.png", rng)
    gray8(scans / "cut.png", rng)
    (scans / "cut.png").write_bytes((scans / "cut.png").read_bytes()[:200])
    (scans / "empty.png").touch()
    (scans / "page.png").write_text("<!DOCTYPE html><html>not found</html>")
    Image.fromarray(rng.integers(0, 255, (30, 30, 3)).astype(np.uint8)).save(scans / "color.png")
    pages = [Image.fromarray(rng.integers(0, 255, (20, 20)).astype(np.uint8)) for _ in range(3)]
    pages[0].save(scans / "volume.tif", save_all=True, append_images=pages[1:])
    (scans / "notes.txt").write_text("not an image, and ignored")
    result = run(scans, make_checkpoint(flat(), Frame(resize=(32, 32))))
    assert result.written == 1
    assert [Path(line.split(" ")[0]).name for line in result.failures] == [
        "color.png",
        "cut.png",
        "empty.png",
        "page.png",
        "volume.tif",
    ]
    assert "3 channels" in result.failures[0]
    assert "is 3D" in result.failures[4]
    assert all("\n" not in line for line in result.failures)
    assert [file.name for file in result.folder.iterdir()] == ["good.png"]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_folder_is_predicted_like_its_images_one_by_one(scans, make_checkpoint, rng, dims):
    """Reading, inference and writing overlap, and every file is the same, byte for byte."""
    spec, frame = flat(), Frame(resize=(32, 32))
    if dims == 3:
        spec, frame = SOLID, Frame(patch=(16, 16, 16))
    for number in range(3):
        shape = (9, 20 + number, 16)[3 - dims :]
        image = sitk.GetImageFromArray(rng.normal(100, 20, shape).astype(np.int16))
        sitk.WriteImage(image, str(scans / f"{number}.nii.gz"))
    checkpoint = make_checkpoint(spec, frame)
    options = PredictOptions(overlays=True, probabilities=True, largest_component=True)
    together, single = scans.with_name("together"), scans.with_name("single")
    assert run(scans, checkpoint, out=together, options=options).written == 3
    for image in sorted(scans.iterdir()):
        run(image, checkpoint, out=single, options=options)
    files = sorted(path.relative_to(single) for path in single.rglob("*.*"))
    assert len(files) == 3 * 3 + (2 if dims == 3 else 0)  # label tables
    for file in files:
        assert (together / file).read_bytes() == (single / file).read_bytes(), file


def test_a_mask_that_cannot_be_written_does_not_stop_the_others(scans, make_checkpoint, rng):
    for name in ("a.png", "b.png", "c.png"):
        gray8(scans / name, rng)
    (scans.with_name("scans-masks") / "b.png" / "in the way").mkdir(parents=True)
    result = run(scans, make_checkpoint(flat(), Frame(resize=(32, 32))))
    assert result.written == 2
    (failure,) = result.failures
    assert failure.startswith(f"{scans / 'b.png'}: cannot write {result.folder / 'b.png'}")
    assert [file.name for file in sorted(result.folder.iterdir())] == ["a.png", "b.png", "c.png"]


def test_a_full_disk_ends_the_command(scans, make_checkpoint, rng, monkeypatch):
    """A disk that holds one mask; which images were read shows that it ends at once."""
    write, read = pictures.write, SOURCES["folder"].open_image
    opened = []

    def fill(path: Path, *arguments: object) -> None:
        if list(path.parent.glob("[!.]*")):
            path.write_bytes(b"half of a mask")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *arguments)

    def note(self, images, spec):
        opened.append(images[0].path.name)
        return read(self, images, spec)

    names = [f"{letter}.png" for letter in "abcdefgh"]
    for name in names:
        gray8(scans / name, rng)
    monkeypatch.setattr(pictures, "write", fill)
    monkeypatch.setattr(SOURCES["folder"], "open_image", note)
    out = scans.with_name("scans-masks")
    message = rf"cannot write {out / 'b.png'}: No space left on device; 1 of 8 images written: free"
    with pytest.raises(CrkdError, match=message):
        run(scans, make_checkpoint(flat(), Frame(resize=(32, 32))))
    assert len(opened) <= 5
    assert [file.name for file in out.iterdir()] == ["a.png"]


@pytest.mark.parametrize("error", [CrkdError, RuntimeError])
def test_errors_during_inference(scans, make_checkpoint, rng, monkeypatch, error):
    """Errors that the user can fix are those of the image; others are bugs and end the command."""
    infer = Inferer.infer

    def fail_at_large_images(self, image, size=None, dtype=None):
        if size == (50, 50):
            raise error("too large")
        return infer(self, image, size, dtype)

    for name, side in (("a.png", 40), ("b.png", 50), ("c.png", 40)):
        Image.fromarray(rng.integers(0, 255, (side, side)).astype(np.uint8)).save(scans / name)
    monkeypatch.setattr(Inferer, "infer", fail_at_large_images)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    if error is CrkdError:
        result = run(scans, checkpoint)
        assert (result.written, result.failures) == (2, [f"{scans / 'b.png'}: too large"])
    else:
        with pytest.raises(RuntimeError, match="too large"):
            run(scans, checkpoint)


def test_two_results_with_the_same_name_are_refused(scans, make_checkpoint, rng):
    gray8(scans / "a.png", rng)
    gray8(scans / "a.tif", rng)
    checkpoint = make_checkpoint(flat(), Frame(resize=(32, 32)))
    # The masks differ in their suffix, the overlays would not.
    assert run(scans, checkpoint).written == 2
    with pytest.raises(CrkdError, match=r"a.png and a.tif would both write .*overlays/a.png"):
        run(scans, checkpoint, options=PredictOptions(overlays=True))


def test_images_are_never_replaced(scans, make_checkpoint, rng):
    gray8(scans / "a.png", rng)
    with pytest.raises(UsageError, match="images' own folder"):
        run(scans, make_checkpoint(flat(), Frame(resize=(32, 32))), out=scans)


def test_images_in_the_root_folder_need_an_output_folder(make_checkpoint):
    with pytest.raises(
        UsageError, match="there is no default for masks of images in /; give --out"
    ):
        run(Path("/"), Path("not read"))


@pytest.mark.slow
def test_the_spacing_of_the_dataset_is_used_for_files_without_one(scans, make_checkpoint, rng):
    with h5py.File(scans / "a.h5", "w") as file:
        file["image"] = rng.random((8, 24, 16)).astype(np.float32)
    overlays = []
    for spacing in (None, (5.0, 1.0, 1.0)):
        spec = msgspec.structs.replace(SOLID, description=Description(spacing=spacing))
        checkpoint = make_checkpoint(spec, Frame(patch=(16, 16, 16)))
        options = PredictOptions(overlays=True, overwrite=True)
        result = run(scans, checkpoint, options=options)
        with Image.open(result.folder / "overlays" / "a.png") as picture:
            overlays.append(np.asarray(picture))
    image, labels = rng.random((1, 8, 24, 16)), expected(scans / "a.h5", checkpoint)
    with h5py.File(scans / "a.h5") as file:
        image = file["image"][()][None]
    drawn = draw_overlay(image, labels, SOLID, (5.0, 1.0, 1.0), "a.h5")
    assert np.array_equal(overlays[1], np.asarray(drawn))
    assert overlays[0].shape != overlays[1].shape
