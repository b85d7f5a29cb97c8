"""Inference against MONAI's sliding window and scipy's zoom, and with an identity model."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import Tensor, nn
from torch.nn.functional import interpolate

from crkd_cli.config import Frame
from crkd_cli.data.store import ChannelInfo, DatasetSpec
from crkd_cli.errors import CrkdError
from crkd_cli.inference.inferer import Inferer
from tests.conftest import CHECKOUT

CPU = torch.device("cpu")
SHAPES = [(16, 16), (17, 31), (5, 40), (33, 9), (1, 1), (16, 16, 16), (19, 7, 33), (40, 16, 5)]


def spec(dims: int, classes: int = 2, modality: str = "MR") -> DatasetSpec:
    names = tuple(f"class {k}" for k in range(classes))
    return DatasetSpec(
        name="x",
        source="folder",
        classes=names,
        channels=(ChannelInfo(modality=modality, intensity="zscore"),),
        dims=dims,
    )


class Identity(nn.Module):
    """Returns the image as the probability of class 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.log1p(-x), torch.log(x)], dim=1)


def net(dims: int, classes: int = 3, seed: int = 3) -> nn.Module:
    """Return a network whose output depends on a voxel's place in the window (zero padding)."""
    torch.manual_seed(seed)
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(conv(1, 4, 5, padding=2), nn.Tanh(), conv(4, classes, 5, padding=2)).eval()


def image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.01, 0.99, (1, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize("window_batch", [1, 3])
def test_windows_of_the_identity_are_the_image(shape, protocol, window_batch):
    x = image(shape)
    frame = Frame(patch=(16,) * len(shape), stride=(5,) * len(shape))
    infer = Inferer(
        [Identity()], frame, spec(len(shape)), CPU, protocol=protocol, window_batch=window_batch
    )
    np.testing.assert_allclose(infer.probabilities(x)[1], x[0], atol=1e-6)
    np.testing.assert_array_equal(infer(x), x[0] > 0.5)


@pytest.mark.parametrize("shape", [(40, 23), (16, 50), (35, 21, 19), (20, 9, 40)], ids=str)
@pytest.mark.parametrize(
    ("protocol", "overlap", "mode"), [("strict", 0.5, "gaussian"), ("paper", 0.75, "constant")]
)
def test_windows_agree_with_monai(shape, protocol, overlap, mode):
    dims = len(shape)
    model = net(dims)
    from monai.inferers import sliding_window_inference  # may be missing on a GPU machine

    frame = Frame(patch=(16,) * dims, stride=(4,) * dims)
    x = image(shape)
    inferer = Inferer([model], frame, spec(dims, 3), CPU, protocol=protocol, window_batch=4)
    expected = sliding_window_inference(
        torch.from_numpy(x)[None],
        (16,) * dims,
        4,
        lambda w: model(w).softmax(1),
        overlap=overlap,
        mode=mode,
    )
    np.testing.assert_allclose(inferer.probabilities(x), expected[0].detach(), atol=2e-6)


@pytest.mark.parametrize(
    "frame", [Frame(patch=(16, 16)), Frame(resize=(16, 32))], ids=["patch", "resize"]
)
def test_a_volume_is_split_along_its_first_axis(frame):
    x = image((5, 21, 30))
    infer = Inferer([net(2)], frame, spec(3, 3), CPU, window_batch=2)
    for function in (infer.probabilities, infer):
        volume = function(x)
        slices = [function(np.ascontiguousarray(x[:, z])) for z in range(5)]
        np.testing.assert_allclose(volume, np.stack(slices, axis=volume.ndim - 3), atol=1e-6)


@pytest.mark.parametrize("modality", ["gray", "MR"])
@pytest.mark.parametrize("dims", [2, 3])
def test_resizing_a_constant_image_keeps_it(dims, modality):
    x = np.full((1, *(11, 23, 9)[:dims]), 0.25, np.float32)
    for protocol in ("strict", "paper"):
        frame = Frame(resize=(16, 32, 16)[:dims])
        infer = Inferer([Identity()], frame, spec(dims, modality=modality), CPU, protocol=protocol)
        np.testing.assert_allclose(infer.probabilities(x)[1], x[0], atol=1e-6)
        assert infer.probabilities(x, (7, 40, 5)[:dims]).shape == (2, *(7, 40, 5)[:dims])


def test_paper_resizing_is_that_of_scipy_zoom():
    """The published evaluation of ACDC: zoom(order=0) to the frame, arg-max, zoom(order=0) back.

    mode="nearest" because scipy's default puts zeros where its last coordinate rounds to just
    outside.
    """
    model, x = net(2, 4), image((3, 37, 50))
    labels = Inferer([model], Frame(resize=(32, 64)), spec(3, 4), CPU, protocol="paper")(x)
    for z in range(3):
        small = zoom(x[0, z], (32 / 37, 64 / 50), order=0, mode="nearest")
        with torch.no_grad():
            out = model(torch.from_numpy(small)[None, None]).argmax(1)[0].numpy()
        np.testing.assert_array_equal(
            labels[z], zoom(out, (37 / 32, 50 / 64), order=0, mode="nearest")
        )


@pytest.mark.parametrize(
    ("frame", "grid", "size"),
    [
        (Frame(patch=(16, 16)), (5, 21, 30), (12, 29, 33)),
        (Frame(resize=(16, 32)), (5, 16, 32), (12, 29, 33)),
        (Frame(patch=(16, 8, 16)), (40, 21, 30), (61, 11, 44)),
        (Frame(resize=(16, 12, 16)), (16, 12, 16), (61, 11, 44)),
    ],
    ids=str,
)
def test_probabilities_are_resized_along_all_axes(frame, grid, size):
    """As in volumes that were resampled, from the grid on which they are computed."""
    infer = Inferer([net(frame.dims)], frame, spec(3, 3), CPU, window_batch=2)
    x = image(grid if frame.patch else (grid[0], 21, 30))
    whole = torch.from_numpy(infer.probabilities(x, grid))[None]
    expected = interpolate(whole, size=size, mode="trilinear", align_corners=False)[0]
    probabilities = infer.probabilities(x, size)
    np.testing.assert_allclose(probabilities, expected, atol=2e-6)
    np.testing.assert_array_equal(infer(x, size), probabilities.argmax(0))


def test_labels_have_the_requested_size():
    """2D images are stored smaller and scored at their native size; a half stays a half."""
    x = np.zeros((1, 32, 32), np.float32) + 0.1
    x[:, :, 16:] = 0.9
    labels = Inferer([Identity()], Frame(resize=(32, 32)), spec(2), CPU)(x, (65, 70))
    assert labels.shape == (65, 70)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.broadcast_to(np.arange(70) >= 35, (65, 70)))


def test_uint8_images_are_divided_by_255():
    x = np.random.default_rng(0).integers(1, 255, (1, 20, 20)).astype(np.uint8)
    infer = Inferer([Identity()], Frame(patch=(16, 16)), spec(2, modality="gray"), CPU)
    np.testing.assert_allclose(infer.probabilities(x)[1], x[0] / 255.0, atol=1e-6)


def test_memory_maps_are_read(tmp_path):
    x = image((20, 20))
    np.save(tmp_path / "x.npy", x)
    infer = Inferer([Identity()], Frame(patch=(16, 16)), spec(2), CPU)
    np.testing.assert_allclose(
        infer.probabilities(np.load(tmp_path / "x.npy", mmap_mode="r"))[1], x[0], atol=1e-6
    )


class Small(Identity):
    """Simulates a device with memory for `room` windows."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.room, self.error = room, error or torch.OutOfMemoryError()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize(
    "frame", [Frame(patch=(16, 16)), Frame(resize=(16, 16))], ids=["patch", "resize"]
)
def test_running_out_of_memory_halves_the_batch_and_is_reported_once(frame):
    x = image((9, 16, 16))
    messages = []
    infer = Inferer([Small(2)], frame, spec(3), CPU, window_batch=8, notify=messages.append)
    np.testing.assert_allclose(infer.probabilities(x)[1], x[0], atol=1e-6)
    assert infer.window_batch == 2
    assert len(messages) == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), MemoryError(), RuntimeError("CPU: can't allocate memory: 9 bytes")],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_for_one_window_is_an_error(error):
    model = Small(0, error)
    infer = Inferer([model], Frame(patch=(16, 16)), spec(2), CPU, notify=lambda line: None)
    with pytest.raises(CrkdError, match="probabilities of 2 classes in an image of 20×16"):
        infer(image((20, 16)))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    infer = Inferer([Small(0, RuntimeError("a bug"))], Frame(patch=(16, 16)), spec(2), CPU)
    with pytest.raises(RuntimeError, match="a bug"):
        infer(image((16, 16)))


def test_many_classes(dims):
    """The labels are those of torch's argmax, and the batches are smaller."""
    model, x = net(dims, 300), image((19, 18, 17)[:dims])
    frame = Frame(patch=(16,) * dims)
    infer = Inferer([model], frame, spec(dims, 300), CPU)
    labels = infer(x)
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, infer.probabilities(x).argmax(0))
    assert labels.max() > 255
    few = Inferer([net(dims, 3)], frame, spec(dims, 3), CPU)
    assert few.window_batch / 10 < max(infer.window_batch, 13) <= few.window_batch / 9


def test_the_mode_of_the_model_is_left_alone():
    model = nn.Sequential(net(2), nn.Dropout(0.9))
    model.train()
    model[0].eval()
    infer = Inferer([model], Frame(patch=(16, 16)), spec(2, 3), CPU)
    np.testing.assert_array_equal(infer(image((16, 16))), infer(image((16, 16))))
    assert model.training
    assert model[1].training
    assert not model[0].training


def test_new_weights_are_used_after_a_refresh():
    model, x = net(2), image((20, 20))
    infer = Inferer([model], Frame(patch=(16, 16)), spec(2, 3), CPU)
    before = infer.probabilities(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    np.testing.assert_array_equal(infer.probabilities(x), before)
    infer.refresh()
    new = Inferer([model], Frame(patch=(16, 16)), spec(2, 3), CPU).probabilities(x)
    np.testing.assert_array_equal(infer.probabilities(x), new)
    assert np.abs(new - before).max() > 0.01


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 20), (1, 4, 4, 20, 20)], ids=str)
def test_an_image_with_other_channels_or_axes_is_an_error(shape):
    with pytest.raises(CrkdError, match="the model needs 1 channel"):
        Inferer([Identity()], Frame(patch=(16, 16)), spec(2), CPU)(np.zeros(shape, np.float32))


def test_bf16_stays_near_fp32():
    x = image((40, 40))
    fp32, bf16 = (
        Inferer([net(2)], Frame(patch=(16, 16)), spec(2, 3), CPU, dtype).probabilities(x)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert bf16.dtype == np.float32
    np.testing.assert_allclose(fp32, bf16, atol=0.02)


class Crowded(Identity):
    """Simulates a GPU with memory for windows, but not for a whole case."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, x: Tensor) -> Tensor:
        if torch.cuda.memory_allocated() > self.room:
            raise torch.OutOfMemoryError
        return super().forward(x)


@pytest.mark.gpu
def test_sums_are_kept_on_the_host_when_the_gpu_is_full():
    x = image((64, 64, 64))  # 1 MiB, and 2 MiB of sums
    messages = []
    model = Crowded(torch.cuda.memory_allocated() + 2**20)
    frame = Frame(patch=(16, 16, 16))
    infer = Inferer(
        [model], frame, spec(3), torch.device("cuda"), window_batch=4, notify=messages.append
    )
    np.testing.assert_allclose(infer.probabilities(x)[1], x[0], atol=1e-6)
    assert len(messages) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    "frame", [Frame(patch=(16, 16)), Frame(resize=(16, 32))], ids=["patch", "resize"]
)
def test_gpu_and_cpu_agree(frame):
    x, model = image((5, 21, 30)), net(2)
    on_cpu = Inferer([model], frame, spec(3, 3), CPU).probabilities(x)
    device = torch.device("cuda")
    on_gpu = Inferer([model.to(device)], frame, spec(3, 3), device).probabilities(x)
    np.testing.assert_allclose(on_cpu, on_gpu, atol=1e-2)  # TF32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "resampled", "limit"), [((160, 96, 96), 1.0, 75), ((240, 144, 144), 1.5, 200)], ids=str
)
def test_memory_does_not_grow_with_the_number_of_planes(size, resampled, limit):
    """The probabilities of all classes would take 150 and 500 MB."""
    command = [sys.executable, "-m", "tests.inference.large_case", *map(str, size)]
    command += ["--resampled", str(resampled), "--patch", "32", "32", "32"]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=CHECKOUT
    ).stdout
    assert float(re.search(r"growth_mib=([\d.]+)", output)[1]) < limit
