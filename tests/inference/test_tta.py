"""Test-time mirroring: the mean over flipped images, with the memory of one prediction."""

import weakref
from itertools import product

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crkd_cli.augment.policy import ChannelTraits
from crkd_cli.augment.published import Published
from crkd_cli.config import DataConfig, Frame
from crkd_cli.errors import UsageError
from crkd_cli.inference.flips import flipped_axes
from crkd_cli.inference.inferer import Inferer, build_inferer
from crkd_cli.runtime.checkpoint import load_checkpoint
from tests.conftest import FLAT
from tests.inference.test_inferer import CPU, image, net, spec

# Windows over these shapes lie symmetrically, so that windows of a flipped image are flipped ones.
SHAPES = {
    "windows": (Frame(patch=(16, 16)), (24, 40)),
    "padded windows": (Frame(patch=(16, 16, 16)), (24, 12, 16)),
    "resized": (Frame(resize=(16, 32)), (21, 30)),
    "resized volume": (Frame(resize=(16, 16, 32)), (11, 21, 30)),
    "slices": (Frame(patch=(16, 16)), (3, 24, 16)),
    "resized slices": (Frame(resize=(16, 32)), (3, 21, 30)),
}


@pytest.mark.parametrize("mirrored", [(0,), (1,), "all"], ids=str)
@pytest.mark.parametrize(("frame", "shape"), SHAPES.values(), ids=SHAPES)
def test_it_is_the_mean_over_flipped_images(frame, shape, mirrored):
    if mirrored == "all":
        mirrored = tuple(range(frame.dims))
    x, model = image(shape), net(frame.dims)
    plain = Inferer([model], frame, spec(len(shape), 3), CPU, window_batch=3)
    # The axes of the frame are the last ones of an image.
    axes = [axis + x.ndim - frame.dims for axis in mirrored]
    flipped = []
    for chosen in product([False, True], repeat=len(axes)):
        flips = [axis for axis, flip in zip(axes, chosen, strict=True) if flip]
        probabilities = plain.probabilities(np.ascontiguousarray(np.flip(x, flips)))
        flipped.append(np.flip(probabilities, flips))
    assert len(flipped) == 2 ** len(mirrored)
    assert np.abs(flipped[0] - flipped[-1]).max() > 0.01

    tta = Inferer([model], frame, spec(len(shape), 3), CPU, window_batch=3, mirrored_axes=mirrored)
    np.testing.assert_allclose(tta.probabilities(x), np.mean(flipped, axis=0), atol=2e-6)
    np.testing.assert_array_equal(tta(x), tta.probabilities(x).argmax(0))


class Recorded(nn.Module):
    """Counts its calls, and how many of its outputs exist at once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls, self.alive, self.most = network, 0, 0, 0

    def __deepcopy__(self, memo: object) -> "Recorded":
        return self

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) <= 2
        y: Tensor = self.network(x)
        weakref.finalize(y, self._forget)
        self.calls, self.alive = self.calls + 1, self.alive + 1
        self.most = max(self.most, self.alive)
        return y

    def _forget(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("mirrored", [(), (0, 1, 2)], ids=str)
def test_flips_are_predicted_one_after_another(mirrored):
    model = Recorded(net(3))
    frame = Frame(patch=(16, 16, 16))
    infer = Inferer([model], frame, spec(3, 3), CPU, window_batch=2, mirrored_axes=mirrored)
    infer(image((24, 24, 24)))  # eight windows
    assert model.calls == 4 * 2 ** len(mirrored)
    assert model.most == 1


@pytest.mark.parametrize("mirror", [None, (0,), (1,), (0, 2), ()], ids=str)
@pytest.mark.parametrize("z_last", [False, True], ids=["zyx", "xyz"])
def test_volumes_are_flipped_along_the_axes_of_training(mirror, z_last):
    """An augmented ramp along an axis changes if that axis is flipped."""
    data = DataConfig(
        name="solid",
        frame=Frame(patch=(8, 8, 8)),
        labeled_batch_size=1,
        unlabeled_batch_size=1,
        mirror=mirror,
    )
    solid = msgspec.structs.replace(spec(3), z_last=z_last)
    policy = Published(
        [ChannelTraits("MR", bounded=False)], (8, 8, 8), solid.plane(3), data.mirrored_axes, 2
    )
    generator = torch.Generator().manual_seed(0)
    changed = []
    for axis in range(3):
        ramps = torch.arange(8.0).view([-1 if a == axis else 1 for a in range(3)])
        ramps = ramps.expand(32, 1, 8, 8, 8)
        if not torch.equal(policy.weak(ramps, generator), ramps):
            changed.append(axis)
    assert flipped_axes(data, solid) == tuple(changed)
    strong = msgspec.structs.replace(data, augment="strong")
    assert flipped_axes(strong, solid) == data.mirrored_axes


def test_the_configuration_says_which_flips_are_allowed(make_checkpoint):
    notes: list[str] = []
    for mirror, flips in ((None, 4), ((0,), 2)):
        checkpoint = load_checkpoint(make_checkpoint(FLAT, Frame(patch=(16, 16)), mirror=mirror))
        infer = build_inferer([checkpoint], "cpu", notes.append, tta=True)
        infer.models = [model] = [Recorded(*infer.models)]
        infer.refresh()
        infer(image((16, 16)))
        assert model.calls == flips

    checkpoint = load_checkpoint(make_checkpoint(FLAT, Frame(patch=(16, 16)), mirror=()))
    with pytest.raises(UsageError, match=r"trained without flips \(data.mirror\); drop --tta"):
        build_inferer([checkpoint], "cpu", notes.append, tta=True)
    build_inferer([checkpoint], "cpu", notes.append)
