"""The plan of a dataset, against the rules calculated by hand."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crkd_cli.config import Frame
from crkd_cli.data.fingerprint import Fingerprint, ImageHeader
from crkd_cli.data.patch_size import Budget, gpu_memory, parse_memory
from crkd_cli.data.plan import Plan
from crkd_cli.data.planning import make_plan
from crkd_cli.errors import UsageError


def volumes(*images):
    """Volumes of (size, spacing, orientation)."""
    return Fingerprint(3, tuple(ImageHeader(*image) for image in images))


def pictures(*sizes):
    return Fingerprint(2, tuple(ImageHeader(size) for size in sizes))


def plan_of(fingerprint, classes=2, memory=8e9, **given):
    return make_plan(fingerprint, Plan(**given), memory, classes)


def test_hippocampus():
    sizes = [(35, 51, 35), (36, 49, 33), (24, 40, 31), (47, 59, 43), (38, 52, 36)]
    plan, reasons = plan_of(volumes(*((size, (1.0, 1.0, 1.0), "RAS") for size in sizes)))
    assert plan == Plan(
        orientation="RAS", spacing="native", network="3D", patch=(32, 48, 32), batch=4
    )
    assert reasons["orientation"] == "as 5 of 5 files"
    # The third image covers 24·40·31 of the patch, the others all of it or 36·48·32 (48 × 32).
    share = (4 + 24 * 40 * 31 / (32 * 48 * 32)) / 5
    assert reasons["patch"].startswith(f"{share:.0%}".replace("%", " % of an average patch"))


def test_the_most_common_orientation():
    size, spacing = (40, 60, 50), (2.0, 1.0, 1.0)
    scans = [(size, spacing, code) for code in ("LPS", "LPS", "RAS")]
    scans.append((size, spacing, None))
    plan, reasons = plan_of(volumes(*scans))
    assert plan.orientation == "LPS"
    assert reasons["orientation"] == (
        "as 2 of 4 files; 1 turned to it; 1 without orientation kept as stored"
    )
    assert plan_of(volumes(*scans), orientation="native").plan.orientation == "native"
    assert plan_of(volumes(scans[3])).plan.orientation == "native"


def test_sizes_and_spacings_are_those_after_turning():
    """In a sagittal scan (PSR: x to the back, y up, z to the right) the slices are along x."""
    axial = ((60, 50, 40), (1.0, 2.0, 3.0), "RAS")
    sagittal = ((40, 60, 50), (3.0, 1.0, 2.0), "PSR")
    plan, _ = plan_of(volumes(axial, axial, sagittal))
    assert plan.spacing == "native"
    assert plan.patch == (56, 48, 40)


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(2.0, 1.0, 1.0), (2.0, 1.0, 1.1)], "native"),
        ([(2.0, 1.0, 1.0), (2.0, 1.0, 1.11)], (2.0, 1.0, 1.055)),
        ([(1.0, 0.5, 0.7), (1.5, 0.6, 0.7), (4.0, 0.9, 0.7)], (1.5, 0.6, 0.7)),
        ([None, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)], (1.5, 1.5, 1.5)),
        ([None], "native"),
        # Anisotropic: along z, the 10th percentile of 5, 6, 7 and 8 is 5.3.
        ([(z, 1.0, 1.0) for z in (5.0, 6.0, 7.0, 8.0)], (5.3, 1.0, 1.0)),
        # It never becomes finer than the other axes: 10th percentile of 0.5, 5, 5: 1.4.
        ([(z, 1.5, 1.5) for z in (0.5, 5.0, 5.0)], (1.5, 1.5, 1.5)),
    ],
)
def test_spacing(spacings, expected):
    fingerprint = volumes(*(((20, 60, 60), spacing, "RAS") for spacing in spacings))
    assert plan_of(fingerprint, network="3D").plan.spacing == pytest.approx(expected)


def test_thick_slices_need_fewer_slices_than_pixels_to_be_the_coarse_axis():
    fingerprint = volumes(*(((90, 60, 60), (z, 1.0, 1.0), None) for z in (5.0, 6.0, 7.0)))
    assert plan_of(fingerprint, network="3D").plan.spacing == (6.0, 1.0, 1.0)


def test_slices_keep_their_distance():
    """Only their pixels are resampled; the median of 1.2, 1.5 and 1.5 mm is 1.5 mm."""
    sizes = [(20, 200, 160), (10, 160, 160), (12, 160, 160)]
    spacings = [(5.0, 1.2, 1.5), (10.0, 1.5, 1.5), (8.0, 1.5, 1.5)]
    images = [(*image, "RAS") for image in zip(sizes, spacings, strict=True)]
    plan, reasons = plan_of(volumes(*images))
    assert (plan.network, plan.spacing, plan.patch) == ("2D", (1.5, 1.5), (160, 160))
    assert reasons["spacing"].startswith("median; files have from 1.2 × 1.5 to 1.5 × 1.5 mm")
    assert plan_of(volumes(*images[1:])).plan.spacing == "native"
    assert plan_of(volumes(*images), spacing=(1.0, 1.0)).plan.network == "2D"
    assert plan_of(volumes(*images), spacing=(1.0, 1.0, 1.0)).plan.network == "3D"


@pytest.mark.parametrize(
    ("size", "spacing", "network"),
    [
        ((16, 64, 64), (2.9, 1.0, 1.0), "3D"),
        ((16, 64, 64), (3.0, 1.0, 0.5), "2D"),
        ((15, 64, 64), (1.0, 1.0, 1.0), "2D"),
        ((15, 64, 64), None, "2D"),
        ((64, 64, 64), None, "3D"),
    ],
)
def test_network(size, spacing, network):
    plan, _ = plan_of(volumes((size, spacing, None)))
    assert plan.network == network
    assert plan.patch == ((64, 64) if network == "2D" else (size[0], 64, 64))
    assert plan_of(volumes((size, spacing, None)), patch=(32, 32)).plan.network == "2D"
    assert plan_of(volumes((size, spacing, None)), network="3D").plan.network == "3D"


def test_the_reason_for_3d_does_not_claim_an_unknown_thickness():
    _, reasons = plan_of(volumes(((64, 64, 64), None, None)))
    assert reasons["network"] == "at least 16 slices; their thickness is unknown"


def test_resampled_volumes_have_another_number_of_slices():
    """Along z 40 slices of 1 mm become 16 of 2.5 mm, and 20 of 4 mm become 32."""
    images = [((40, 64, 64), (1.0, 1.0, 1.0), None), ((20, 64, 64), (4.0, 1.0, 1.0), None)]
    plan, _ = plan_of(volumes(*images))
    assert plan.spacing == (2.5, 1.0, 1.0)
    # Of the median 24 slices, the first volume has 16, and 83 % would be image on average.
    assert plan.patch == (20, 64, 64)


def test_the_side_that_is_longest_in_mm_shrinks_to_fit_the_memory():
    big = volumes(((100, 400, 400), (1.0, 0.5, 0.5), None))
    # 0.5 GB and 1,944 bytes per voxel of 2 + 2 patches: at most 450,102 voxels, here 442,368.
    plan, reasons = plan_of(big, memory=4e9)
    assert plan.patch == (48, 96, 96)
    assert plan.batch == 2
    assert Budget(2, 4e9).needed((48, 96, 96), 2) == 0.5e9 + 1944 * 48 * 96 * 96 * 4
    assert "4 GB of --memory" in reasons["batch"]
    assert prod(plan_of(big, memory=8e9).plan.patch) > 1.5 * prod(plan.patch)
    many = plan_of(big, memory=4e9, classes=100).plan
    assert prod(many.patch) < prod(plan.patch) / 2
    with pytest.raises(UsageError, match=r"needs about 0.6 GB, but training may use 0.5 GB"):
        plan_of(big, memory=0.5e9)


def test_color_images_leave_memory_for_the_larger_network():
    """By hand: 12 + 12 images of 256×256, with 3,924 bytes per pixel, or 5,704 if in color."""
    images = (ImageHeader((400, 500)),)
    gray, color = (make_plan(Fingerprint(2, images, c), Plan(), 7e9, 2)[0] for c in (False, True))
    assert (gray.batch, color.batch) == (12, 8)
    assert 2 * 12 * 256**2 * 3924 <= 6.5e9 < 2 * 12 * 256**2 * 5704
    assert 2 * 8 * 256**2 * 5704 <= 6.5e9 < 2 * 9 * 256**2 * 5704


def test_slices():
    fingerprint = volumes(((9, 512, 400), (8.0, 1.0, 1.0), "LPS"))
    plan, _ = plan_of(fingerprint)
    assert (plan.patch, plan.batch) == ((512, 400), 4)  # 4.67 times 2 · 512 · 400 · 3,924 bytes
    assert plan_of(fingerprint, memory=100e9).plan == Plan(
        orientation="LPS", spacing="native", network="2D", patch=(512, 400), batch=12
    )


def test_pictures():
    assert plan_of(pictures((767, 1022), (600, 800))).plan == Plan(
        orientation="native", spacing="native", network="2D", resize=(256, 256), batch=12
    )
    plan, reasons = plan_of(pictures((28, 28), (90, 50), (70, 80)), memory=0.6e9)
    assert plan.resize == (80, 80)
    assert plan.batch == 1  # 100 MB of 2 · 80² pixels of 3,924 bytes
    assert reasons["resize"] == "the median image is 70 × 50"


def test_given_parts_are_kept_and_the_others_fit_them():
    fingerprint = volumes(((40, 60, 50), (2.0, 1.0, 1.0), "LPS"))
    given = {"orientation": "RAS", "spacing": (4.0, 2.0, 2.0), "batch": 7}
    plan, reasons = plan_of(fingerprint, **given)
    assert plan == Plan(**given, network="3D", patch=(20, 28, 24))
    assert set(reasons) == {"orientation", "spacing", "network", "patch", "batch"}
    complete = Plan(orientation="LPS", spacing="native", network="2D", patch=(64, 32), batch=3)
    assert make_plan(fingerprint, complete, 1e9, 2).plan == complete
    assert plan_of(pictures((50, 50)), resize=(128, 64)).plan.resize == (128, 64)


@pytest.mark.parametrize(
    ("fingerprint", "given", "words"),
    [
        (pictures((5, 5)), {"orientation": "RAS"}, "plan.orientation .* is RAS, but .* are 2D"),
        (pictures((5, 5)), {"spacing": (1.0, 1.0)}, "plan.spacing .* are 2D"),
        (pictures((5, 5)), {"network": "3D"}, "plan.network .* is 3D, but .* are 2D"),
        (pictures((5, 5)), {"patch": (32, 32)}, "plan.patch .* give resize"),
        (volumes(((5, 5, 5),)), {"resize": (32, 32)}, "plan.resize .* give patch"),
        (volumes(((5, 5, 5),)), {"orientation": "RAS"}, "plan.orientation .* no file states"),
        (volumes(((5, 5, 5),)), {"spacing": (1.0,) * 3}, "plan.spacing .* with --spacing"),
    ],
)
def test_parts_that_do_not_fit_the_images(fingerprint, given, words):
    with pytest.raises(UsageError, match=words):
        plan_of(fingerprint, **given)


@pytest.mark.parametrize(
    ("text", "expected"), [("8GB", 8e9), ("500MB", 5e8), ("1.5 gb", 1.5e9), (" 24GB ", 24e9)]
)
def test_memory(text, expected):
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["8", "GB", "8TB", "-8GB", "0GB", "8GB8", "nan GB", ""])
def test_memory_that_is_no_size(text):
    with pytest.raises(UsageError, match="such as 8GB or 500MB"):
        parse_memory(text)


HEADERS = st.builds(
    ImageHeader,
    st.tuples(*[st.integers(4, 600)] * 3),
    st.none() | st.tuples(*[st.floats(0.1, 10)] * 3),
    st.sampled_from(["RAS", "LPS", "PSR", "SAL", None]),
)


@given(
    images=st.lists(HEADERS, min_size=1, max_size=6),
    classes=st.integers(2, 200),
    memory=st.floats(2e9, 80e9),
)
@settings(max_examples=60, deadline=None)
def test_every_plan_is_valid(images, classes, memory):
    """It is complete, fits in the memory, and at least 90 % of an average patch is image."""
    plan, _ = make_plan(Fingerprint(3, tuple(images)), Plan(), memory, classes)
    assert None not in (plan.orientation, plan.spacing, plan.network, plan.batch, plan.patch)
    assert plan.frame == Frame(patch=plan.patch)
    assert Budget(classes, memory).needed(plan.patch, plan.batch) <= memory
    stored = [image.turned(plan.orientation).resampled(plan.spacing) for image in images]
    sizes = np.array([image.size[-len(plan.patch) :] for image in stored])
    if sizes.min() >= 4:
        covered = np.minimum(sizes, plan.patch).prod(1) / prod(plan.patch)
        assert covered.mean() >= 0.9
    again = make_plan(Fingerprint(3, tuple(images)), plan, memory, classes)
    assert again.plan == plan


@pytest.fixture
def asked_anew():
    """The memory of the GPU is asked for in this test, whatever was known before."""
    gpu_memory.cache_clear()
    yield
    gpu_memory.cache_clear()


@pytest.mark.parametrize(
    ("output", "size", "text"),
    [
        ("echo 81559; echo 24564", 24564 * 2**20, "25.8 GB of the GPU; see --memory"),
        ("echo no devices were found; exit 6", 8e9, "8 GB assumed; see --memory"),
        ("echo '[N/A]'", 8e9, "8 GB assumed; see --memory"),
    ],
)
def test_the_default_is_the_memory_of_the_smallest_gpu(
    output, size, text, tmp_path, monkeypatch, asked_anew
):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{output}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    budget = Budget(2, None)
    assert (budget.memory, str(budget)) == (size, text)


def test_without_the_driver_the_default_is_8_gb(tmp_path, monkeypatch, asked_anew):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Budget(2, None).memory == 8e9
