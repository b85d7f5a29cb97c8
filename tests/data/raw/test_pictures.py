"""Pictures of all kinds: turned as viewers show them, read exactly, or refused by name."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from crkd_cli.data.raw.formats import Volume, label_name, probe, read_image, read_label, write_label
from crkd_cli.data.raw.pictures import resize
from crkd_cli.errors import CrkdError

GRAY = np.arange(6, dtype=np.uint8).reshape(2, 3)
BLOCKS = np.kron(GRAY * 40, np.ones((16, 16), np.uint8))  # survive JPEG compression
# What viewers show of a picture with this EXIF orientation.
UPRIGHT = {
    1: BLOCKS,
    2: BLOCKS[:, ::-1],
    3: BLOCKS[::-1, ::-1],
    4: BLOCKS[::-1],
    5: BLOCKS.T,
    6: np.rot90(BLOCKS, -1),
    7: BLOCKS[::-1, ::-1].T,
    8: np.rot90(BLOCKS, 1),
}


@pytest.mark.parametrize("kind", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, kind, orientation):
    path = tmp_path / f"x{kind}"
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tiffinfo": {274: orientation}} if kind == ".tif" else {"exif": exif}
    Image.fromarray(BLOCKS).save(path, dpi=(100, 200), **options)
    volume = read_image(path)
    assert volume.size == UPRIGHT[orientation].shape == probe(path).size
    np.testing.assert_allclose(volume.array[0], UPRIGHT[orientation], atol=3)
    np.testing.assert_array_equal(read_label(path).array, volume.array[0])

    label = (volume.array[0] > 90).astype(np.uint8)
    mask = tmp_path / label_name(tmp_path / f"mask{kind}")
    write_label(mask, label, volume)
    with Image.open(mask) as written:
        assert written.getexif().get(274, 1) == 1
        np.testing.assert_array_equal(np.asarray(written), label)
        expected = (200, 100) if orientation >= 5 else (100, 200)
        assert written.info["dpi"] == pytest.approx(expected, abs=0.01)


def test_two_pages_with_an_orientation(tmp_path):
    pages = [Image.fromarray(BLOCKS), Image.fromarray(255 - BLOCKS)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:], tiffinfo={274: 8})
    np.testing.assert_array_equal(
        read_image(tmp_path / "x.tif").array[0], [np.rot90(BLOCKS), np.rot90(255 - BLOCKS)]
    )


def tiff(array, photometric, sample_format=1, extra=(), planar=1):
    """Return an uncompressed little-endian TIFF of [y, x, samples]."""
    height, width, samples = array.shape
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    data += bytes(len(data) % 2)
    bits = 8 * array.dtype.itemsize
    fields = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8]),
        277: (3, [samples]),
        278: (4, [height]),
        279: (4, [array.nbytes]),
        284: (3, [planar]),
        338: (3, list(extra)),
        339: (3, [sample_format] * samples),
    }
    fields = {tag: field for tag, field in fields.items() if field[1]}
    start = 8 + len(data)
    end = start + 6 + 12 * len(fields)
    entries = tail = b""
    for tag, (kind, values) in fields.items():
        value = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(value) > 4:
            value, tail = struct.pack("<I", end + len(tail)), tail + value
        entries += struct.pack("<HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", start)
    return head + data + struct.pack("<H", len(fields)) + entries + bytes(4) + tail


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width, height, bits, color, rows):
    """Return a PNG; `rows` have a filter byte each."""
    header = struct.pack(">2I5B", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


COLORS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
EXACT = {
    "rgb8.tif": (tiff(COLORS, 2), COLORS.transpose(2, 0, 1)),
    "int16.tif": (tiff(GRAY[..., None].astype("i2") - 200, 1, 2), GRAY[None].astype(int) - 200),
    "uint32.tif": (tiff(GRAY[..., None] + np.uint32(2**31), 1), GRAY[None] + np.uint32(2**31)),
    "float32.tif": (tiff(GRAY[..., None] / np.float32(3), 1, 3), GRAY[None] / np.float32(3)),
}
REFUSED = {
    "rgb16.tif": (tiff(COLORS.astype("u2"), 2), "has colors .* of 16 bits, and 8 of them would be"),
    "planar16.tif": (tiff(COLORS.astype("u2"), 2, planar=2), "of 16 bits, and 8 of them would be"),
    "rgb16.png": (png(1, 1, 16, 2, bytes(7)), "has colors .* of 16 bits, and 8 of them would be"),
    "la16.png": (png(1, 1, 16, 4, bytes(5)), "transparency.* of 16 bits, and 8 of them would be"),
    "minisblack.tif": (tiff(COLORS, 1), "unusual combination of samples, bits and colors; save"),
    "float64.tif": (tiff(GRAY[..., None].astype("f8"), 1, 3), "unusual combination of samples"),
    "two.tif": (tiff(COLORS[..., :2], 1, extra=(0,)), "has 2 channels, which are not gray or RGB"),
    "cmyk.tif": (tiff(np.zeros((2, 3, 4), np.uint8), 5), "is a CMYK picture; save it as RGB"),
    "lab.tif": (tiff(COLORS, 8), "is a LAB picture; save it as RGB or gray"),
}


@pytest.mark.parametrize("name", EXACT)
def test_values_are_exact(tmp_path, name):
    content, expected = EXACT[name]
    (tmp_path / name).write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / name).array, expected)


@pytest.mark.parametrize("name", REFUSED)
def test_values_are_never_changed_without_a_word(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CrkdError, match=f"{name} .*{message}"):
        read_image(tmp_path / name)


def test_cmyk_jpg(tmp_path):
    Image.fromarray(COLORS).convert("CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(CrkdError, match=r"x\.jpg is a CMYK picture; save it as RGB or gray"):
        read_image(tmp_path / "x.jpg")


def test_labels_have_the_stored_values(tmp_path):
    """Pillow stretches gray values of 2 and 4 bits to 255, and inverts where 0 is white."""
    contents = {
        "2bits.png": (png(4, 1, 2, 0, b"\0\x1b"), [0, 1, 2, 3]),
        "4bits.png": (png(4, 1, 4, 0, b"\0\x01\x2f"), [0, 1, 2, 15]),
        "white.tif": (tiff(np.array([[[0], [1], [2], [255]]], np.uint8), 0), [0, 1, 2, 255]),
    }
    for name, (content, expected) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read_label(tmp_path / name).array.tolist() == [expected], name


@pytest.mark.parametrize("kind", [".gif", ".bmp", ".png", ".tif"])
def test_palettes(tmp_path, kind):
    picture = Image.new("P", (3, 2))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    picture.putdata([0, 1, 2, 2, 1, 0])
    picture.save(tmp_path / f"x{kind}")
    assert read_label(tmp_path / f"x{kind}").array.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert read_image(tmp_path / f"x{kind}").array[:, 0, 1].tolist() == [255, 0, 0]
    assert probe(tmp_path / f"x{kind}")[:2] == (3, (2, 3))


def test_first_frame_of_films_and_second_pictures(tmp_path):
    frames = [Image.fromarray(BLOCKS), Image.fromarray(255 - BLOCKS)]
    for name, kind in (("x.gif", "GIF"), ("y.jpg", "MPO"), ("z.png", "PNG")):
        frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:])
        volume = read_image(tmp_path / name)
        assert probe(tmp_path / name).dims == 2
        np.testing.assert_allclose(volume.array[0], BLOCKS, atol=3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.dstack([np.full_like(GRAY, 255)] * 3 + [GRAY * 40]), None),
        (np.dstack([np.zeros_like(GRAY)] * 3 + [GRAY * 40]), None),
        (np.dstack([GRAY % 2] * 3 + [np.full_like(GRAY, 255)]), GRAY % 2),
        (np.dstack([GRAY % 2] * 3 + [GRAY % 2 * 255]), GRAY % 2),
        (np.dstack([np.full_like(GRAY, 7), GRAY * 40]), None),
        (np.dstack([GRAY % 2, np.full_like(GRAY, 255)]), GRAY % 2),
    ],
)
def test_alpha(tmp_path, array, expected):
    Image.fromarray(array).save(tmp_path / "x.png")
    if expected is None:
        for read in (read_image, read_label):
            with pytest.raises(CrkdError, match=r"x\.png has one color everywhere, its content is"):
                read(tmp_path / "x.png")
    else:
        np.testing.assert_array_equal(read_label(tmp_path / "x.png").array, expected)


def test_only_the_named_formats_are_opened(tmp_path):
    """Pillow would run ghostscript for EPS."""
    advice = {"EPS": "a PostScript document", "WEBP": "a WebP picture", "JPEG2000": "a JPEG 2000"}
    for kind, name in advice.items():
        Image.fromarray(BLOCKS).save(tmp_path / "x.png", kind)
        with pytest.raises(CrkdError, match=rf"x\.png is {name}.* ends in \.png; open and save it"):
            read_image(tmp_path / "x.png")
    Image.fromarray(BLOCKS).save(tmp_path / "x.png", "PPM")
    with pytest.raises(CrkdError, match=r"x\.png cannot be read, it may be .* in another format"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_the_content_counts_not_the_suffix(tmp_path, kind):
    for suffix in (".png", ".jpg", ".tif"):
        Image.fromarray(BLOCKS).save(tmp_path / f"x{suffix}", kind)
        np.testing.assert_allclose(read_image(tmp_path / f"x{suffix}").array[0], BLOCKS, atol=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(128) + b"DICM", "is a DICOM file .*; end its name in .dcm"),
        (b"PK\x03\x04", "is a zip archive .*; unpack it"),
        (b"\x1f\x8b\x08\0", "is a gzip file .*; decompress it"),
        (b"%PDF-1.7", "is a PDF document .*; export its pictures as PNG"),
        (b"NRRD0004\n", r"is an NRRD file .*; end its name in \.nrrd"),
        (b"\x89HDF\r\n\x1a\n", r"is an HDF5 file .*; end its name in \.h5"),
        (bytes(344) + b"n+1\0", r"is a NIfTI file .*; end its name in \.nii"),
        (b"version https://git-lfs.github.com", "is a Git LFS pointer .*; get the file with git"),
    ],
)
def test_intact_files_of_another_kind_are_named(tmp_path, content, message):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(CrkdError, match=rf"x\.png {message}"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("kind", [".png", ".tif"])
def test_every_byte_that_a_checksum_protects(tmp_path, rng, kind):
    path = tmp_path / f"x{kind}"
    options = {"compression": "tiff_adobe_deflate"} if kind == ".tif" else {}
    Image.fromarray(rng.integers(0, 256, (4, 5), dtype=np.uint8)).save(path, **options)
    whole = path.read_bytes()
    first, last = 8, len(whole)
    if kind == ".tif":
        with Image.open(path) as picture:
            first, last = picture.tag_v2[273][0], picture.tag_v2[273][0] + picture.tag_v2[279][0]
    for position in range(first, last, 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(CrkdError, match=rf"x\{kind}"):
            read_image(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(CrkdError, match=rf"x\{kind} cannot be read, it may be truncated"):
        read_image(path)


def test_a_jpg_with_very_many_scans(tmp_path):
    Image.new("L", (5000, 5000)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[:-2] + 200 * b"\xff\xda" + content[-2:])
    with pytest.raises(CrkdError, match=r"x\.jpg stores its pixels in 201 scans; save it as PNG"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("kind", "values", "mode"),
    [
        (".png", [0, 255], "L"),
        (".png", [0, 256], "I;16"),
        (".tif", [0, 255], "L"),
        (".tif", [0, 65535], "I;16"),
        (".tif", [0, 2**31 - 1], "I"),
        (".tif", [-5, 300], "I"),
    ],
)
def test_masks_have_the_smallest_type_that_holds_their_values(tmp_path, kind, values, mode):
    label = np.array([values])
    path = tmp_path / f"x{kind}"
    write_label(path, label, Volume(label[None], None, label.shape))
    with Image.open(path) as written:
        assert written.mode == mode
    assert read_label(path).array.tolist() == [values]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (".png", [0, 65536], "the values 0 to 65536 are not 0 to 65535"),
        (".png", [-1, 1], "the values -1 to 1 are not 0 to 65535"),
        (".tif", [0, 2**31], "the values 0 to 2147483648 are not of 32 bits"),
    ],
)
def test_values_that_a_format_cannot_hold(tmp_path, kind, values, message):
    label = np.array([values])
    with pytest.raises(CrkdError, match=rf"cannot write .*x\{kind}: {message}"):
        write_label(tmp_path / f"x{kind}", label, Volume(label[None], None, label.shape))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_colors_are_resized_as_single_channels_are(rng, method):
    array = rng.integers(0, 256, (3, 37, 50), dtype=np.uint8)
    for size in ((16, 24), (64, 50)):
        expected = np.stack([resize(channel, size, method) for channel in array])
        np.testing.assert_array_equal(resize(array, size, method), expected)


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_is_decoded_smaller_where_it_will_be_resized(tmp_path, rng, orientation):
    colors = ndimage.zoom(rng.integers(60, 200, (20, 25, 3)), (16, 16, 1), order=3, mode="nearest")
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8))
    picture.save(tmp_path / "photo.jpg", quality=90, exif=exif)
    exact = read_image(tmp_path / "photo.jpg")
    small = read_image(tmp_path / "photo.jpg", resized_to=(40, 32))
    native, decoded = ((320, 400), (80, 100)) if orientation == 1 else ((400, 320), (100, 80))
    assert (exact.size, exact.array.shape[1:]) == (native, native)
    assert (small.size, small.array.shape[1:]) == (native, decoded)
    expected = resize(exact.array, (40, 32), "bilinear").astype(int)
    assert np.abs(resize(small.array, (40, 32), "bilinear") - expected).max() <= 2
