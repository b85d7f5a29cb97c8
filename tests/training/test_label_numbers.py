"""Training and prediction with more classes than 8 bits number, and with ignored pixels."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.data.store import ClassInfo, Index, Store, write_index
from crkd_cli.inference.case_predictor import PredictOptions
from crkd_cli.inference.predict import predict
from crkd_cli.training.loop import train
from crkd_cli.training.start import start
from tests.training.helpers import Planner, quiet

CLASSES = 300  # class number k has the value 10 k in label files


def relabel(store: Store) -> None:
    """Make the discs class 299, and ignore the first rows of every label."""
    classes = tuple(ClassInfo(name=f"c{k}", values=(10 * k,)) for k in range(CLASSES))
    spec = msgspec.structs.replace(store.spec, classes=classes, ignore=65535)
    index = Index(recipe=store.index.recipe, spec=spec, cases=store.index.cases)
    for file in (store.root / "labels").iterdir():
        label = np.load(file).astype(np.int16) * (CLASSES - 1)
        label[:8] = CLASSES
        np.save(file, label)
    write_index(store.root, index)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2], indirect=True)
def test_hundreds_of_classes_and_ignored_pixels(tiny: Planner, tmp_path: Path) -> None:
    relabel(tiny().store)
    planned = tiny("train.steps=2", "train.log_every=1")
    run = start(planned)
    assert run.method.task.has_ignored
    label = run.loader.batch(run.loader.read(1), 1).labeled.label
    assert set(label.unique().tolist()) == {0, CLASSES - 1, CLASSES}
    last = train(run, quiet)["last"]
    assert last["total"] > 0
    share = (label == CLASSES - 1).sum() / (label < CLASSES).sum()
    assert last["label_share_299"] == pytest.approx(share.item(), rel=1e-5)

    scans = tmp_path / "scans"
    scans.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8)
    Image.fromarray(pixels).save(scans / "a.png")
    options = PredictOptions(overlays=True, largest_component=True)
    checkpoint = planned.folder / "last.pth"
    result = predict(scans, [checkpoint], lambda line: None, progress, None, "cpu", options)
    assert (result.written, result.failures) == (1, [])
    assert result.classes[299] == (2990, "c299")
    mask = np.asarray(Image.open(result.folder / "a.png"))
    assert mask.dtype == np.uint16
    assert mask.shape == (40, 30)
    assert not (mask % 10).any()
    assert mask.max() <= 2990
