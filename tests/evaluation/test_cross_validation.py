"""Folds: every case is scored by the model that held it out, and all cases make one result."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from medpy.metric import binary
from scipy import stats

from crkd_cli.cli.bars import progress
from crkd_cli.data.splits import Fold
from crkd_cli.errors import UsageError
from crkd_cli.evaluation.evaluate import EvaluationReport, evaluate
from crkd_cli.evaluation.results import find_evaluation, read_evaluation
from crkd_cli.inference.ensemble import load_ensemble
from crkd_cli.metrics.summary import summarize
from crkd_cli.reporting.compare import compare_runs
from crkd_cli.reporting.tables import tables
from crkd_cli.runtime.checkpoint import load_checkpoint, save_checkpoint
from crkd_cli.runtime.class_rule import ClassRule
from tests.evaluation.test_evaluate import FRAMES, as_source, labels_of

GROUPS = {"p0": 2, "p1": 1, "p2": 1, "p3": 2, "p4": 1, "p5": 1, "p6": 1, "p7": 1}
HELD_OUT = [("p0", "p1"), ("p2", "p3"), ("p4",)]
TEST = ("p6", "p7")


@pytest.fixture
def make_folds(make_checkpoint, tmp_path):
    """make_folds(store.spec, "a", seed=1): the files of three folds with different weights."""

    def make(spec, name: str, **options) -> list[Path]:
        files = []
        for number, held_out in enumerate(HELD_OUT, start=1):
            file = make_checkpoint(
                spec,
                FRAMES[spec.dims],
                f"runs/{name}/fold{number}/last.pth",
                **{
                    "labeled": HELD_OUT[number % 3],
                    "test": TEST,
                    "fold": Fold(number, 3, held_out),
                    **options,
                },
            )
            change(file, spread=number)
            files.append(file)
        return files

    return make


def change(file: Path, spread: int = 0, **fields) -> None:
    """Change a checkpoint; `spread` shifts what its network predicts."""
    checkpoint = load_checkpoint(file)
    weights = {
        name: values * (1 + 0.3 * spread) if values.ndim > 1 else values
        for name, values in checkpoint.weights.items()
    }
    save_checkpoint(replace(checkpoint, weights=weights, **fields), file)


def run(tmp_path: Path, *files: Path, **options) -> EvaluationReport:
    return evaluate(files, tmp_path / "data", lambda line: None, progress, **options)


def rows(report: EvaluationReport) -> list[dict[str, str]]:
    with (report.folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_case_is_scored_by_the_fold_that_held_it_out(make_store, make_folds, tmp_path):
    store = make_store(groups=GROUPS)
    files = make_folds(store.spec, "a")
    folder = tmp_path / "runs" / "a"
    report = run(tmp_path, folder)
    assert report.folder == folder / "evaluation-strict-fold"
    table = rows(report)
    cases = ["p0_0", "p0_1", "p1", "p2", "p3_0", "p3_1", "p4"]
    assert [row["case"] for row in table] == cases
    owners = [0, 0, 0, 1, 1, 1, 2]
    for row, owner in zip(table, owners, strict=True):
        truth = store.label(row["case"]) == 1
        dice = [binary.dc(labels_of(file, store, row["case"]) == 1, truth) for file in files]
        assert float(row["dice"]) == pytest.approx(dice[owner], abs=1e-6)
        assert len({f"{value:.6f}" for value in dice}) == 3  # the models differ

    # The mean and the interval are over the patients of all folds, as if of one model.
    dice = np.array([[float(row["dice"])] for row in table])
    _, expected = summarize(dice, groups=[row["group"] for row in table])
    got = report.mean[0]
    assert got.mean == pytest.approx(dice.mean(), abs=1e-6)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-5)
    assert report.facts["interval"] == "95 %, bootstrap over patients"
    tree = json.loads((report.folder / "summary.json").read_text())
    assert [fold["cases"] for fold in tree["folds"]] == [cases[:3], cases[3:6], cases[6:]]
    assert (tree["members"], tree["labeled"], tree["split"]) == ([], 1, "made-up")

    # A fold alone has the same scores, and its own folder.
    alone = run(tmp_path, folder / "fold2")
    assert rows(alone) == table[3:6]
    assert alone.folder == folder / "fold2" / "evaluation-strict-fold"
    assert alone.facts["split"] == "made-up, fold 2 of 3"


@pytest.mark.slow
def test_several_paths_are_a_cross_validation_too(make_store, make_folds, tmp_path):
    files = make_folds(make_store(groups=GROUPS).spec, "a")
    whole = run(tmp_path, tmp_path / "runs" / "a")
    parts = run(tmp_path, *files[::-1])
    assert parts.folder == whole.folder
    assert parts.mean == whole.mean


@pytest.mark.slow
def test_the_average_of_the_folds_is_scored_on_the_test_part(make_store, make_folds, tmp_path):
    store = make_store(groups=GROUPS)
    files = make_folds(store.spec, "a")
    report = run(tmp_path, tmp_path / "runs" / "a", part="test")
    assert report.folder == tmp_path / "runs" / "a" / "evaluation-strict-test"
    assert [row["case"] for row in rows(report)] == ["p6", "p7"]
    assert len(report.facts["members"]) == 3
    assert report.facts["labeled"] == 5  # the labels of all folds
    together = run(tmp_path, *files, part="test", out=tmp_path / "out")
    assert rows(together) == rows(report)


@pytest.mark.slow
def test_rules_of_post_processing_are_those_of_the_fold(make_store, make_folds, tmp_path):
    store = make_store(groups=GROUPS)
    files = make_folds(store.spec, "a")
    raw = rows(run(tmp_path, tmp_path / "runs" / "a"))
    change(files[1], postprocessing=(ClassRule(smallest_component=1.0, fill_holes=True),))
    processed = run(tmp_path, tmp_path / "runs" / "a")
    differ = [a != b for a, b in zip(raw, rows(processed), strict=True)]
    assert not any(differ[:3] + differ[6:])
    assert any(differ[3:6])
    facts = read_evaluation(processed.folder).facts
    assert facts.postprocessed
    assert facts.title == "supervised with post-processing"
    kept = run(tmp_path, tmp_path / "runs" / "a", raw=True)
    assert rows(kept) == raw
    assert kept.folder.name == "evaluation-strict-fold-raw"


def test_a_folder_without_all_folds_is_an_error(make_store, make_folds, tmp_path):
    store = make_store(groups=GROUPS)
    folder = tmp_path / "runs" / "a"
    files = make_folds(store.spec, "a")
    for file, missing in ((files[1], "2"), (files[2], "2, 3")):
        shutil.rmtree(file.parent)
        for part in (None, "test"):
            with pytest.raises(UsageError, match=f"a lacks fold {missing} of 3; rerun the command"):
                run(tmp_path, folder, part=part)
    assert len(load_ensemble([folder / "fold1"])) == 1


def test_what_is_no_cross_validation(make_store, make_folds, tmp_path):
    store = make_store(groups=GROUPS)
    folder = tmp_path / "runs" / "a"
    files = make_folds(store.spec, "a")
    with pytest.raises(UsageError, match="a lacks fold 2 of 3; rerun the command"):
        run(tmp_path, files[0], files[2])
    other = make_folds(store.spec, "b", seed=6)
    with pytest.raises(UsageError, match=r"fold1/last.pth are both fold 1; evaluate the folds of"):
        run(tmp_path, *files, *other)
    with pytest.raises(UsageError, match=r"not folds of one cross-validation: train.seed is 5 and"):
        run(tmp_path, *files[:2], other[2])
    best = files[2].with_name("best.pth")
    shutil.copy(files[2], best)
    with pytest.raises(UsageError, match="one is the best and one the last checkpoint"):
        run(tmp_path, folder)
    best.unlink()
    change(files[2], step=7)
    with pytest.raises(UsageError, match="fold 3 is at step 7, fold 1 at step 10; rerun"):
        run(tmp_path, folder)
    split = load_checkpoint(files[2]).split
    changed = msgspec.structs.replace(split, fold=Fold(3, 3, ("p4", "p2")))
    change(files[2], step=10, split=changed)
    with pytest.raises(UsageError, match="several folds hold out p2"):
        run(tmp_path, folder)
    change(files[2], split=msgspec.structs.replace(split, name="other"))
    with pytest.raises(UsageError, match="made-up, fold 1 of 3 and other, fold 3 of 3"):
        run(tmp_path, folder)
    assert not list(folder.glob("evaluation*"))


@pytest.mark.slow
def test_nothing_published_is_a_cross_validation(make_store, make_folds, tmp_path):
    spec = as_source(make_store("acdc", dims=3, groups=GROUPS), "acdc")
    labels = {"labeled": ("x", "y", "z")}  # published with 3
    files = make_folds(spec, "a", **labels)
    report = run(tmp_path, tmp_path / "runs" / "a")
    assert report.facts["labeled"] == 3
    assert report.published == []
    assert run(tmp_path, files[0]).published == []
    assert compare_runs([read_evaluation(report.folder)]).published == []
    with pytest.raises(UsageError, match="scores single models, not cross-validations"):
        run(tmp_path, tmp_path / "runs" / "a", protocol="paper")


@pytest.mark.slow
def test_compare_pairs_the_cases_of_all_folds(make_store, make_folds, cli, tmp_path):
    """As if the pooled tables were those of one model: against scipy."""
    store = make_store(groups=GROUPS)
    folders = {}
    for name, seed in (("a", 5), ("b", 6)):
        files = make_folds(store.spec, name, seed=seed)
        if name == "b":
            for file in files:
                config = load_checkpoint(file).config
                train = msgspec.structs.replace(config.train, lr=0.5)
                change(file, config=msgspec.structs.replace(config, train=train))
        folders[name] = tmp_path / "runs" / name
    evaluations = []
    for folder in folders.values():
        run(tmp_path, folder)
        assert find_evaluation(folder, "strict", None) == folder / "evaluation-strict-fold"
        evaluations.append(read_evaluation(folder / "evaluation-strict-fold"))
    comparison = compare_runs(evaluations)
    assert [entry.name for entry in comparison.entries] == ["supervised (a)", "supervised (b)"]
    dice = [run.scores[:, 0, 0] for run in evaluations]
    assert [entry.mean[0].mean for entry in comparison.entries] == pytest.approx(
        [values.mean() for values in dice]
    )
    difference = dice[0] - dice[1]
    patients = [difference[:2].mean(), difference[2], difference[3], difference[4:6].mean()]
    patients.append(difference[6])
    test = comparison.tests[0].difference
    assert test.n == 5
    assert test.mean == pytest.approx(np.mean(patients))
    assert test.p == pytest.approx(stats.wilcoxon(patients).pvalue)
    assert np.isnan(comparison.entries[0].mean[0].sd)  # folds are not repetitions
    table = tables(comparison)[0]
    assert table.title == "toy, 3 folds: 7 cases of 5 patients, strict protocol, 1 to 2 labeled"
    assert any("the one of 3 models that held it out" in note for note in table.notes)

    result = cli("compare", *folders.values(), "--json")
    assert json.loads(result.stdout) == comparison.tree()
    fold = tmp_path / "runs" / "a" / "fold1"
    run(tmp_path, fold)
    result = cli("compare", fold, folders["b"])
    assert result.exit_code == 2
    assert "cannot be compared" in result.stderr


@pytest.mark.slow
def test_other_folds_are_not_compared(make_store, make_folds, tmp_path):
    """Even if the numbers of labels differ, as they may otherwise."""
    store = make_store(groups=GROUPS)
    evaluations = []
    for name, labeled in (("a", ("p5",)), ("b", ("p5", "x"))):
        files = make_folds(store.spec, name, labeled=labeled)
        if name == "b":
            for file, held_out in zip(files[:2], HELD_OUT[1::-1], strict=True):
                split = load_checkpoint(file).split
                fold = msgspec.structs.replace(split.fold, held_out=held_out)
                change(file, split=msgspec.structs.replace(split, fold=fold))
        run(tmp_path, tmp_path / "runs" / name)
        evaluations.append(read_evaluation(tmp_path / "runs" / name / "evaluation-strict-fold"))
    names = [entry.name for entry in compare_runs(evaluations).entries]
    assert names == ["supervised, 1 labeled", "supervised, 2 labeled"]  # in another order
    folds = evaluations[1].facts.folds
    moved = msgspec.structs.replace(folds[0], cases=folds[0].cases + folds[1].cases[:1])
    kept = msgspec.structs.replace(folds[1], cases=folds[1].cases[1:])
    facts = msgspec.structs.replace(evaluations[1].facts, folds=(moved, kept, folds[2]))
    with pytest.raises(UsageError, match="differ in the cases of the folds"):
        compare_runs([evaluations[0], replace(evaluations[1], facts=facts)])


@pytest.mark.slow
def test_moved_folds_are_found(make_store, make_folds, tmp_path):
    make_folds(make_store(groups=GROUPS).spec, "a")
    run(tmp_path, tmp_path / "runs" / "a")
    moved = (tmp_path / "runs" / "a").rename(tmp_path / "moved")
    evaluation = read_evaluation(moved / "evaluation-strict-fold")
    folds = [moved / f"fold{number}" for number in (1, 2, 3)]
    assert evaluation.runs == folds
    assert evaluation.run == moved
    assert list(evaluation.checkpoints) == [fold / "last.pth" for fold in folds]


def test_a_folder_without_an_evaluation(make_store, make_folds, cli, tmp_path):
    make_folds(make_store(groups=GROUPS).spec, "a")
    folder = tmp_path / "runs" / "a"
    result = cli("compare", folder)
    assert result.exit_code == 2
    assert f"has no strict evaluation of fold; run: crkd evaluate {folder}" in result.stderr


@pytest.mark.slow
def test_post_processing_of_every_fold(make_store, make_folds, cli, tmp_path):
    """Chosen on its own validation cases; without them, the mistake is named."""
    spec = make_store(groups=GROUPS).spec
    root = ("--data-root", tmp_path / "data")
    files = make_folds(spec, "a", val=("p5",))
    result = cli("postprocess", tmp_path / "runs" / "a", *root)
    assert result.exit_code == 0, result.stderr
    written = [line for line in result.stderr.splitlines() if line.startswith("written: ")]
    assert written == [f"written: {file}" for file in files]
    make_folds(spec, "b")
    result = cli("postprocess", tmp_path / "runs" / "b", *root)
    assert result.exit_code == 2
    assert "has no validation cases to choose post-processing on" in result.stderr


@pytest.mark.slow
def test_tables_and_the_report(make_store, make_folds, cli, tmp_path):
    make_folds(make_store(groups=GROUPS).spec, "a")
    folder, root = tmp_path / "runs" / "a", ("--data-root", tmp_path / "data")
    result = cli("evaluate", folder, "--overlay", *root)
    assert result.exit_code == 0, result.stderr
    pictures = (folder / "evaluation-strict-fold" / "overlays").iterdir()
    assert len([picture for picture in pictures if picture.suffix == ".png"]) == 7
    assert "toy, 3 folds: 7 cases, strict protocol; supervised, 1 to 2 labeled" in result.stdout
    assert "each case is scored by the fold that held it out" in result.stdout
    for number in (1, 2, 3):
        log = {"step": number, "total": 1 / number}
        (folder / f"fold{number}" / "log.jsonl").write_text(json.dumps(log) + "\n")
    result = cli("compare", folder, "--report", tmp_path / "page", *root)
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "page" / "index.html").read_text()
    for number in (1, 2, 3):
        assert str(folder / f"fold{number}" / "last.pth") in page
    assert "training loss over training steps: supervised" in page
