"""Resizing a few planes at a time against resizing whole cases with torch and scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import zoom

from crkd_cli.inference import resizing
from crkd_cli.inference.resizing import most_probable, resize, resize_to_nearest


def resized(whole: torch.Tensor, size: tuple[int, ...], *, nearest: bool) -> torch.Tensor:
    """Resize a case [K, D, H, W] that comes in blocks of planes."""
    result = torch.full((len(whole), *size), torch.nan)
    blocks = (block.clone() for block in whole.transpose(0, 1).split([1, 4, len(whole[0]) - 5]))
    for planes, by_class in resize(blocks, whole.shape[1], size, nearest=nearest):
        for k, values in enumerate(by_class):
            result[k, planes] = values
    return result


SIZES = [(9, 6, 7), (14, 9, 5), (9, 11, 12), (5, 6, 7), (1, 3, 40), (31, 6, 7)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("memory", [2**24, 1000, 1])
def test_a_case_is_resized_plane_by_plane(
    size: tuple[int, ...], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "BLOCK_BYTES", memory)
    torch.manual_seed(0)
    whole = torch.rand(3, 9, 6, 7)
    expected = F.interpolate(whole[None], size=size, mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(resized(whole, size, nearest=False), expected, rtol=0, atol=1e-6)
    assert torch.equal(resized(whole, size, nearest=True), resize_to_nearest(whole[None], size)[0])


@pytest.mark.parametrize(
    ("old", "new"), [((7, 9), (16, 16)), ((250, 213), (256, 256)), ((4, 5, 6), (3, 9, 1))]
)
def test_nearest_is_scipy_zoom(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 255, old)
    nearest = resize_to_nearest(torch.from_numpy(x)[None, None], new)[0, 0].numpy()
    factors = [n / o for n, o in zip(new, old, strict=True)]
    np.testing.assert_array_equal(nearest, zoom(x, factors, order=0, mode="nearest"))


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int16)])
def test_the_type_of_labels_can_number_the_classes_and_ignored_pixels(
    classes: int, dtype: torch.dtype
) -> None:
    labels, _ = most_probable(torch.eye(classes), classes)
    assert labels.dtype == dtype
    assert labels.flatten().tolist() == list(range(classes))


def test_of_equally_probable_classes_the_first_is_taken() -> None:
    probabilities = torch.tensor([[0.4, 0.2, 0.0], [0.4, 0.4, 0.5], [0.2, 0.4, 0.5]])
    labels, highest = most_probable(probabilities, 3)
    assert labels.tolist() == [0, 1, 1]
    assert highest.tolist() == pytest.approx([0.4, 0.4, 0.5])
