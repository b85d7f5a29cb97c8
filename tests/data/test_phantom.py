"""Synthetic hearts: reproducible, anatomically correct, and different from each other."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_fill_holes, label

from crkd_cli.data import synthetic
from crkd_cli.data.raw.formats import read_label
from crkd_cli.data.sources import SOURCES


@pytest.mark.parametrize(
    ("draw", "shape"), [(synthetic.short_axis, (6, 64, 64)), (synthetic.atrium, (40, 64, 64))]
)
def test_a_case_depends_only_on_its_number(draw, shape):
    image, labels = draw(3)
    image_again, labels_again = draw(3)
    assert image.shape == labels.shape == shape
    assert np.array_equal(image, image_again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(image, draw(4)[0])
    assert image.min() >= 0
    assert image.max() > image.min()


def test_every_stack_has_its_three_structures_in_place():
    for number in range(80):
        _, labels = synthetic.short_axis(number)
        assert set(np.unique(labels)) == {0, 1, 2, 3}, number
        for plane in labels:
            left = plane == 3
            if not left.any():
                continue
            ring = plane == 2
            around = binary_dilation(left) & ~left
            assert not (around & ~ring)[1:-1, 1:-1].any(), number  # muscle all around
            assert (binary_fill_holes(left | ring) == (left | ring)).all(), number


def test_every_atrium_is_in_one_piece():
    for number in range(0, 40, 8):
        _, labels = synthetic.atrium(number)
        parts, count = label(labels)
        assert 0.003 < labels.mean() < 0.15, number
        assert np.bincount(parts.ravel())[1:].max() > 0.9 * labels.sum(), (number, count)


def test_contrast_varies_strongly_between_cases():
    ratios = []
    for number in range(40):
        image, labels = synthetic.short_axis(number)
        ratios.append(image[labels == 3].mean() / image[labels == 2].mean())
    assert np.quantile(ratios, 0.9) / np.quantile(ratios, 0.1) > 1.5


@pytest.mark.parametrize("name", ["phantom", "phantom3d"])
def test_the_source_reads_the_files_that_it_writes(name, tmp_path, monkeypatch):
    source = SOURCES[name]()
    monkeypatch.setattr(type(source), "cases", 2)
    source.generate(tmp_path, lambda amount, note="": None)
    cases = source.find(tmp_path)
    assert [case.id for case in cases] == ["heart000", "heart001"]
    spec = source.spec(name, cases)
    assert spec.source == name
    image, label = source.draw(1)
    opened = source.open_image(cases[1].images, spec)
    volume = source.finish(opened, cases[1].image, spec)
    assert volume.spacing_mm == source.spacing
    low, width = (image.min(), np.ptp(image)) if name == "phantom" else (image.mean(), image.std())
    assert np.abs(volume.array[0] * width + low - image).max() < 0.01
    (file,) = cases[1].labels
    assert np.array_equal(read_label(file.path).array, label)
    assert set(np.unique(label)) == set(range(len(spec.classes)))
