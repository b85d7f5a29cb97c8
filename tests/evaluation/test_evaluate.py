"""Evaluation: scores against medpy, absent classes, and the rules of the paper protocol."""

import csv
import json
import math
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from medpy.metric import binary
from PIL import Image

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.store import ClassInfo, numbered_classes, write_index
from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation import paper
from crkd_cli.evaluation.evaluate import evaluate
from crkd_cli.evaluation.literature import published_rows
from crkd_cli.evaluation.results import find_evaluation
from crkd_cli.inference.inferer import Inferer
from crkd_cli.inference.overlay import draw_overlay
from crkd_cli.metrics.presence import Presence
from crkd_cli.metrics.summary import summarize
from crkd_cli.runtime.build import load_predictor
from crkd_cli.runtime.checkpoint import load_checkpoint
from crkd_cli.training.validator import validation_dice

MEDPY = (binary.dc, binary.jc, binary.hd95, binary.asd)
CPU = torch.device("cpu")
FRAMES = {2: Frame(resize=(32, 32)), 3: Frame(patch=(16, 16, 16), stride=(8, 8, 8))}


def run(file: Path, tmp_path: Path, **options):
    notices = []
    return evaluate([file], tmp_path / "data", notices.append, progress, **options), notices


def rows(report) -> list[dict[str, str]]:
    with (report.folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def labels_of(file: Path, store, case: str, protocol: str = "strict") -> np.ndarray:
    loaded, cpu = load_checkpoint(file), torch.device("cpu")
    frame = loaded.config.data.frame
    inferer = Inferer([load_predictor(loaded, cpu)], frame, loaded.spec, cpu, protocol=protocol)
    return inferer(store.image(case), store.native_label(case).shape)


def respaced(store, spacing):
    """Change the spacing in the index of the store."""
    cases = [msgspec.structs.replace(case, spacing_mm=spacing) for case in store.index.cases]
    index = msgspec.structs.replace(store.index, cases=tuple(cases))
    write_index(store.root, index)


def test_overlays_show_prediction_and_reference(make_store, make_checkpoint, tmp_path):
    store = make_store(dims=2, groups={"p1": 2, "p2": 1})
    file = make_checkpoint(store.spec, FRAMES[2], test=("p2", "p1"))
    report, _ = run(file, tmp_path, overlays=True)
    pictures = sorted((report.folder / "overlays").iterdir())
    assert [picture.name for picture in pictures] == ["p1_0.png", "p1_1.png", "p2.png"]
    image, truth = np.array(store.image("p2")), np.array(store.label("p2"))
    expected = draw_overlay(image, labels_of(file, store, "p2"), store.spec, None, "p2", truth)
    with Image.open(pictures[2]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 0.5), None], ids=["mm", "px"])
def test_strict_scores_are_medpys(dims, spacing, make_store, make_checkpoint, tmp_path):
    store = make_store(dims=dims, groups={"p1": 2, "p2": 1})
    step = spacing and spacing[:dims]
    respaced(store, step)
    file = make_checkpoint(store.spec, FRAMES[dims], test=("p2", "p1"))
    report, notices = run(file, tmp_path)
    unit = "mm" if spacing else "px"
    distances = (f"hd95_{unit}", f"assd_{unit}", f"asd_{unit}", f"nsd_2{unit}")
    assert report.metrics == ("dice", "jaccard", *distances)
    assert any("strict protocol" in line for line in notices)
    table = rows(report)
    assert [row["case"] for row in table] == ["p2", "p1_0", "p1_1"]
    for row in table:
        labels, truth = labels_of(file, store, row["case"]) == 1, store.label(row["case"]) == 1
        assert float(row["dice"]) == pytest.approx(binary.dc(labels, truth), abs=1e-6)
        assert float(row["jaccard"]) == pytest.approx(binary.jc(labels, truth), abs=1e-6)
        assert float(row[f"assd_{unit}"]) == pytest.approx(
            binary.assd(labels, truth, step), abs=1e-6
        )
        assert float(row[f"asd_{unit}"]) == pytest.approx(binary.asd(labels, truth, step), abs=1e-6)
        assert row["protocol"] == "strict"
    dice = [float(row["dice"]) for row in table]
    tree = json.loads((report.folder / "summary.json").read_text())
    assert tree["mean"]["dice"]["mean"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert tree["classes"]["disc"]["scores"]["dice"]["sd"] == pytest.approx(
        np.std(dice, ddof=1), abs=1e-6
    )
    facts = (tree["protocol"], tree["part"], tree["cases"], tree["step"])
    assert facts == ("strict", "test", 3, 10)
    assert report.folder == file.parent / "evaluation-strict-test"


def test_the_same_evaluation_writes_the_same_bytes(make_store, make_checkpoint, tmp_path):
    store = make_store(groups=4)
    file = make_checkpoint(store.spec, FRAMES[2], test=("p00", "p01"))
    contents = []
    for _ in range(2):
        folder = run(file, tmp_path)[0].folder
        contents.append([(folder / name).read_bytes() for name in ("cases.csv", "summary.json")])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("frames", "over"), [(1, "cases"), (2, "patients")])
def test_the_interval_is_over_patients(make_store, make_checkpoint, tmp_path, frames, over):
    store = make_store(groups={f"p{number}": frames for number in range(4)})
    file = make_checkpoint(store.spec, FRAMES[2], test=("p0", "p1", "p2"))
    report, _ = run(file, tmp_path)
    assert report.facts["interval"] == f"95 %, bootstrap over {over}"
    table = rows(report)
    assert len(table) == 3 * frames
    (expected,), _ = summarize(
        np.array([[float(row["dice"])] for row in table]), groups=[row["group"] for row in table]
    )
    assert (report.mean[0].low, report.mean[0].high) == pytest.approx(
        (expected.low, expected.high), abs=1e-5
    )


def test_validation_is_the_mean_dice(dims, make_store, make_checkpoint, tmp_path):
    store = make_store(dims=dims, groups=3)
    file = make_checkpoint(store.spec, FRAMES[dims], test=("p00", "p01", "p02"))
    loaded, cpu = load_checkpoint(file), torch.device("cpu")
    inferer = Inferer([load_predictor(loaded, cpu)], loaded.config.data.frame, loaded.spec, cpu)
    scores = validation_dice(inferer, store, ["p00", "p01", "p02"])
    report, _ = run(file, tmp_path)
    assert scores == pytest.approx(
        {"dice": report.mean[0].mean, "dice/disc": report.classes["disc"].scores[0].mean}
    )


def test_classes_that_are_absent_from_cases(make_store, make_checkpoint, tmp_path):
    """Class 5 is in one of three cases, class 300 in none; 7 is ignored and class number 3.

    The network predicts both classes somewhere in every image.
    """
    store = make_store(groups=3)
    label = np.zeros((3, 32, 32), np.int16)
    label[0, 5:15, 5:15] = 1
    label[1] = 3
    for case, content in zip(store.cases, label, strict=True):
        np.save(store.root / "labels" / f"{case}.npy", content)
    classes = (
        ClassInfo("background", (0,)),
        ClassInfo("tumor", (5, 6)),
        ClassInfo("cyst", (300,)),
    )
    spec = msgspec.structs.replace(store.spec, classes=classes, ignore=7)
    index = msgspec.structs.replace(store.index, spec=spec)
    write_index(store.root, index)
    store = type(store)(store.root)
    file = make_checkpoint(spec, FRAMES[2], test=("p00", "p01", "p02"))
    report, _ = run(file, tmp_path)

    labels = [labels_of(file, store, case) for case in store.cases]
    assert all({1, 2} <= set(np.unique(predicted)) for predicted in labels)
    tumor, cyst = report.classes["tumor"], report.classes["cyst"]
    assert (tumor.value, tumor.presence, tumor.n) == (5, Presence(2, 1), 2)
    assert (cyst.value, cyst.presence, cyst.n) == (300, Presence(3, 2), 0)
    first, second, third = rows(report)[::2]
    assert [row["value"] for row in rows(report)] == ["5", "300"] * 3
    assert [row["truth_size"] for row in (first, second, third)] == ["100", "0", "0"]
    # The second case is ignored everywhere, so nothing is predicted there either.
    sizes = [str(np.sum(labels[0] == 1)), "0", str(np.sum(labels[2] == 1))]
    assert [row["predicted_size"] for row in (first, second, third)] == sizes
    dice = binary.dc(labels[0] == 1, label[0] == 1)
    assert float(first["dice"]) == pytest.approx(dice, abs=1e-6)
    assert [second["dice"], second["hd95_mm"], second["nsd_2mm"]] == ["", "", ""]
    assert [third["dice"], third["nsd_2mm"]] == ["0.000000", "0.000000"]
    assert float(third["hd95_mm"]) == pytest.approx(math.hypot(32, 32), abs=1e-6)
    assert all(row["dice"] == "" for row in rows(report)[1::2])
    assert report.mean[0].mean == pytest.approx(dice / 2)

    tree = json.loads((report.folder / "summary.json").read_text())
    counts = {key: tree["classes"]["cyst"][key] for key in ("value", "n", "absent")}
    assert counts == {"value": 300, "n": 0, "absent": 3}
    assert tree["classes"]["cyst"]["scores"]["dice"]["mean"] is None
    assert tree["classes"]["tumor"]["false_positives"] == 1

    scores = validation_dice(
        Inferer([load_predictor(load_checkpoint(file), CPU)], FRAMES[2], spec, CPU),
        store,
        ["p00", "p01", "p02"],
    )
    expected = {"dice": dice / 2, "dice/tumor": dice / 2, "dice/cyst": math.nan}
    assert scores == pytest.approx(expected, nan_ok=True)


def as_source(store, source: str):
    """Change the source in the index of the store, and return the new facts."""
    spec = msgspec.structs.replace(store.spec, source=source)
    index = msgspec.structs.replace(store.index, spec=spec)
    write_index(store.root, index)
    return spec


def test_paper_protocol_scores_acdc_on_val_and_test(make_store, make_checkpoint, tmp_path):
    store = make_store("acdc", dims=3, groups=5)
    spec = as_source(store, "acdc")
    frame = Frame(resize=(48, 48))
    file = make_checkpoint(spec, frame, labeled=("p00", "p01", "p02"), val=("p03",), test=("p04",))
    report, _ = run(file, tmp_path, protocol="paper")
    assert report.folder.name == "evaluation-paper-val+test"
    assert report.metrics == ("dice", "jaccard", "hd95_px", "asd_px")
    assert [row["case"] for row in rows(report)] == ["p03", "p04"]
    for row in rows(report):
        labels = labels_of(file, store, row["case"], "paper") == 1
        truth = store.label(row["case"]) == 1
        expected = [score(labels, truth) for score in MEDPY]
        assert [float(row[name]) for name in report.metrics] == pytest.approx(expected, abs=1e-6)
    assert {row.method for row in report.published} >= {"CRKD", "UniMatch", "supervised"}
    assert "Student" in report.facts["interval"]


def test_only_the_paper_protocol_needs_medpy(make_store, make_checkpoint, tmp_path, monkeypatch):
    spec = as_source(make_store("acdc", dims=3, groups=3), "acdc")
    file = make_checkpoint(
        spec, Frame(resize=(48, 48)), labeled=("p00",), val=("p01",), test=("p02",)
    )
    monkeypatch.setitem(sys.modules, "medpy", None)  # importing it now fails
    monkeypatch.delitem(sys.modules, "medpy.metric", raising=False)
    report, _ = run(file, tmp_path)
    assert not np.isnan(report.mean[0].mean)
    with pytest.raises(ImportError, match="medpy"):
        run(file, tmp_path, protocol="paper")


@pytest.mark.parametrize("source", ["acdc", "la", "isic2018", "kvasir"])
def test_paper_rules_for_empty_masks(source):
    nothing, some = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    some[2:5, 2:5] = True
    for pair in ((nothing, some), (some, nothing)):
        scores = paper.scores(*pair, source)
        assert scores[:2].tolist() == [0, 0]
        assert all(scores[2:] == 0) if source in ("acdc", "la") else all(np.isnan(scores[2:]))
    both = paper.scores(nothing, nothing, source)
    assert both[0] == (0 if source in ("acdc", "la") else 1)
    assert paper.scores(some, some, source).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("share", [0.002, 0.4], ids=["thin", "scattered"])
def test_paper_scores_are_medpys(dims, rng, share):
    prediction, truth = (np.pad(rng.random((90, 60, 20)[:dims]) < share, 5) for _ in range(2))
    expected = [score(prediction, truth) for score in MEDPY]
    assert paper.scores(prediction, truth, "la").tolist() == expected


def test_there_is_no_published_protocol_for_your_own_data(make_store, make_checkpoint, tmp_path):
    store = make_store()
    with pytest.raises(UsageError, match="no published protocol for folder data"):
        run(make_checkpoint(store.spec, FRAMES[2], test=("p00",)), tmp_path, protocol="paper")


def test_pictures_are_scored_at_their_native_size(make_store, make_checkpoint, tmp_path, rng):
    from PIL import Image

    store = make_store(groups=2)
    (store.root / "native").mkdir()
    native = rng.integers(0, 2, (45, 51)).astype(np.uint8)
    Image.fromarray(native).save(store.root / "native" / "p00.png")
    cases = tuple(
        msgspec.structs.replace(case, native_shape=(45, 51)) for case in store.index.cases
    )
    index = msgspec.structs.replace(store.index, cases=cases)
    write_index(store.root, index)
    file = make_checkpoint(store.spec, FRAMES[2], test=("p00",))
    report, _ = run(file, tmp_path)
    fresh = type(store)(store.root)
    labels = labels_of(file, fresh, "p00")
    assert labels.shape == (45, 51)
    assert report.metrics[2] == "hd95_px"
    assert report.mean[0].mean == pytest.approx(binary.dc(labels == 1, native == 1), abs=1e-6)


def test_val_is_scored_if_there_are_no_test_cases(make_store, make_checkpoint, tmp_path):
    store = make_store()
    file = make_checkpoint(store.spec, FRAMES[2], val=("p01",), best={"step": 10, "dice": 0.5})
    report, notices = run(file, tmp_path)
    assert report.folder.name == "evaluation-strict-val"
    assert any("no test cases: scoring the validation cases" in line for line in notices)
    assert any("selected on the validation cases" in line for line in notices)
    _, notices = run(
        make_checkpoint(store.spec, FRAMES[2], val=("p01",), best={"step": 5, "dice": 0.5}),
        tmp_path,
    )
    # The best checkpoint is of step 5, this one is of step 10.
    assert not any("selected on the validation cases" in line for line in notices)


def test_best_and_last_have_their_own_folders(make_store, make_checkpoint, tmp_path):
    spec = make_store().spec
    best, last = (
        make_checkpoint(spec, FRAMES[2], f"runs/x/{name}.pth", test=("p00",))
        for name in ("best", "last")
    )
    folders = [run(file, tmp_path)[0].folder for file in (best, last)]
    assert [folder.name for folder in folders] == [
        "evaluation-strict-test",
        "evaluation-strict-test-last",
    ]
    assert [
        find_evaluation(folder, "strict", None) for folder in (best.parent, folders[1])
    ] == folders
    alone = make_checkpoint(spec, FRAMES[2], "runs/y/last.pth", test=("p00",))
    assert run(alone, tmp_path)[0].folder.name == "evaluation-strict-test"


@pytest.mark.parametrize(("fact", "field"), [("truth", "label_sha256"), ("images", "sha256")])
def test_digests_depend_on_the_test_cases_only(make_store, make_checkpoint, tmp_path, fact, field):
    store = make_store(groups=3)
    file = make_checkpoint(store.spec, FRAMES[2], labeled=("p00",), test=("p01", "p02"))
    cases = store.index.cases
    digests = []
    for changed in (None, 0, 2):
        now = [
            msgspec.structs.replace(case, **{field: "0"}) if n == changed else case
            for n, case in enumerate(cases)
        ]
        index = msgspec.structs.replace(store.index, cases=tuple(now))
        write_index(store.root, index)
        digests.append(run(file, tmp_path, other_data=True)[0].facts[fact])
    assert digests[0] == digests[1] != digests[2]


def test_cases_that_cannot_be_scored_are_named(make_store, make_checkpoint, tmp_path):
    store = make_store(unlabeled={"p05"})
    with pytest.raises(CrkdError, match="has no val cases; give --part test"):
        run(make_checkpoint(store.spec, FRAMES[2], test=("p00",)), tmp_path, part="val")
    with pytest.raises(CrkdError, match="lacks 1 of the 2 test cases of split made-up: gone"):
        run(make_checkpoint(store.spec, FRAMES[2], test=("p00", "gone")), tmp_path)
    with pytest.raises(CrkdError, match="have no label: p05"):
        run(make_checkpoint(store.spec, FRAMES[2], test=("p05",)), tmp_path)
    other = msgspec.structs.replace(store.spec, classes=numbered_classes(("background", "a", "b")))
    with pytest.raises(
        CrkdError,
        match=r"is not the dataset that .* was trained on: class number 1 was a \(1\), now disc",
    ):
        run(make_checkpoint(other, FRAMES[2], test=("p00",)), tmp_path)


def test_published_rows_match_the_dataset_and_the_labeled_cases():
    """Spot checks against the tables that they come from."""
    (row,) = [row for row in published_rows("la", 4) if row.method == "CRKD"]
    assert row.protocol == "paper"
    assert (row.dice, row.jaccard, row.hd95, row.asd) == (87.21, 77.50, 9.02, 2.04)
    in_paper = [row for row in published_rows("acdc", 7) if row.protocol == "paper"]
    (row,) = [row for row in in_paper if row.method == "CrossMatch"]
    assert (row.dice, row.jaccard, row.hd95, row.asd) == (87.88, 79.27, 4.50, 1.46)
    assert published_rows("la", 5) == published_rows("phantom", 3) == []
