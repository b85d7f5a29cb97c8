"""Comparisons: means over seeds by hand, tests against scipy, and what is refused."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from crkd_cli.errors import CrkdError, UsageError
from crkd_cli.evaluation.results import find_evaluation, read_evaluation
from crkd_cli.metrics.presence import Presence
from crkd_cli.reporting.compare import compare_runs
from crkd_cli.reporting.tables import tables

CASES = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d", "e": "e", "f": "f"}  # case → patient
NAN = math.nan


@pytest.fixture
def evaluated(write_evaluation, rng):
    """evaluated("crkd", 1, …): a run with a Dice of about 0.8 and an HD95 of about 5 mm."""

    def make(method="crkd", seed=1, scores=None, cases=CASES, **facts):
        if scores is None:
            noise = rng.random((len(cases), 2, 2))
            scores = noise * [0.2, 4.0] + [0.7, 3.0]
        return read_evaluation(
            write_evaluation(
                f"{method}-seed{seed}", scores, cases, method=method, seed=seed, **facts
            )
        )

    return make


def test_means_over_seeds_by_hand(evaluated):
    base = np.full((7, 2, 2), [0.5, 4.0])
    base[:, 1, 0] = 0.7
    runs = [
        evaluated(seed=seed, scores=base + np.array([shift, 0.0]))
        for seed, shift in ((1, 0.0), (2, 0.1), (3, 0.2))
    ]
    (entry,) = compare_runs(runs).entries
    assert entry.name == "crkd"
    # Of 0.6, 0.7 and 0.8.
    assert (entry.mean[0].mean, entry.mean[0].sd) == pytest.approx((0.7, 0.1))
    assert entry.classes["myo"][0].mean == pytest.approx(0.8)
    assert (entry.mean[1].mean, entry.mean[1].sd) == pytest.approx((4.0, 0.0))
    # All patients have the same scores.
    assert (entry.mean[0].low, entry.mean[0].high) == pytest.approx((0.7, 0.7))


def test_runs_of_a_changed_method_file_are_another_method(evaluated):
    same = [evaluated("mine", seed, method_sha256="ab") for seed in (1, 2)]
    assert [len(entry.runs) for entry in compare_runs(same).entries] == [2]
    other = evaluated("mine", 3, method_sha256="cd")
    assert [len(entry.runs) for entry in compare_runs([*same, other]).entries] == [2, 1]


def test_best_and_last_checkpoints_are_not_averaged(evaluated):
    best, last = (
        evaluated(seed=1, checkpoint="a/best.pth"),
        evaluated(seed=2, checkpoint="b/last.pth"),
    )
    with pytest.raises(
        UsageError,
        match=r"crkd-seed1/.* scored best.pth and .*crkd-seed2/.* scored last.pth; evaluate",
    ):
        compare_runs([last, best])
    assert len(compare_runs([best, evaluated("supervised", checkpoint="last.pth")]).entries) == 2


def test_one_run_has_no_spread_over_seeds(evaluated):
    comparison = compare_runs([evaluated()])
    assert math.isnan(comparison.entries[0].mean[0].sd)
    assert comparison.tests == []
    assert comparison.tree()["methods"][0]["mean"]["scores"]["dice"]["sd"] is None


def test_the_interval_is_over_patients(evaluated, rng):
    """Against scipy, which resamples patients' sums and counts, averaged over seeds and classes."""
    runs = [evaluated(seed=seed) for seed in (1, 2)]
    per_case = np.mean([run.scores[..., 0] for run in runs], axis=(0, 2))
    owner = np.unique(list(CASES.values()), return_inverse=True)[1]
    expected = stats.bootstrap(
        (np.bincount(owner, per_case), np.bincount(owner)),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        random_state=rng,
    ).confidence_interval
    mean = compare_runs(runs).entries[0].mean[0]
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_the_test_between_methods_is_scipys(evaluated):
    runs = [
        evaluated(method, seed) for method in ("crkd", "supervised", "unimatch") for seed in (1, 2)
    ]
    comparison = compare_runs(runs)
    assert [(t.metric, t.first, t.second) for t in comparison.tests[:3]] == [
        ("dice", "crkd", "supervised"),
        ("dice", "crkd", "unimatch"),
        ("dice", "supervised", "unimatch"),
    ]
    means = [
        np.mean([run.scores[..., 0] for run in pair], axis=(0, 2))
        for pair in (runs[:2], runs[2:4], runs[4:])
    ]
    patients = [np.array([values[:2].mean(), *values[2:]]) for values in means]
    ps = [stats.wilcoxon(patients[a], patients[b]).pvalue for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [t.difference.p for t in comparison.tests[:3]] == pytest.approx(ps)
    assert comparison.tests[0].difference.mean == pytest.approx((patients[0] - patients[1]).mean())
    assert comparison.tests[0].difference.n == 6
    assert min(t.p_holm for t in comparison.tests[:3]) == pytest.approx(min(1.0, 3 * min(ps)))


def test_the_order_of_the_cases_does_not_matter(evaluated, write_evaluation):
    runs = [evaluated("crkd"), evaluated("supervised")]
    order = list(reversed(CASES))
    reordered = write_evaluation(
        "reordered",
        runs[1].scores[::-1],
        {case: CASES[case] for case in order},
        method="supervised",
        seed=1,
    )
    assert (
        compare_runs([runs[0], read_evaluation(reordered)]).tests[0].difference
        == compare_runs(runs).tests[0].difference
    )


def test_undefined_scores_are_left_out_and_counted(evaluated):
    scores = np.full((7, 2, 2), [0.5, 4.0])
    scores[0, 0, 1] = NAN
    scores[1:, 0, 1] = 6.0
    entry = compare_runs([evaluated(scores=scores)]).entries[0]
    assert entry.classes["rv"][1].mean == pytest.approx(6.0)
    assert entry.mean[1].mean == pytest.approx(5.0)
    assert [score.undefined for score in entry.mean] == [0, 1]


def test_pairs_and_false_positives_are_counted_per_class(evaluated):
    """Both classes are in all cases but a1 and b, where myo is absent.

    The first method predicts myo in neither; the second in both, or in b alone with another seed.
    """
    scores, sizes = np.full((7, 2, 2), [0.5, 4.0]), np.full((7, 2, 2), 9)
    absent = [0, 2]  # a1, b
    sizes[absent, 1, 0] = 0
    none, both, one = (sizes.copy() for _ in range(3))
    none[absent, 1, 1] = one[0, 1, 1] = 0
    undefined, wrong, mixed = (scores.copy() for _ in range(3))
    undefined[absent, 1] = NAN
    wrong[absent, 1] = mixed[2, 1] = [0.0, 90.0]
    mixed[0, 1] = NAN
    runs = [
        evaluated("crkd", scores=undefined, sizes=none),
        evaluated("supervised", 1, scores=wrong, sizes=both),
        evaluated("supervised", 2, scores=mixed, sizes=one),
    ]
    comparison = compare_runs(runs)
    crkd, supervised = comparison.entries
    assert crkd.presence == {"rv": Presence(0, 0), "myo": Presence(2, 0)}
    assert supervised.presence == {"rv": Presence(0, 0), "myo": Presence(4, 3)}
    assert supervised.mean[0].undefined == 1
    # 14 scores, of which the first method lacks two; they cost the second one nothing here.
    for test in comparison.tests:
        assert (test.difference.n, test.difference.pairs, test.difference.left_out) == (6, 12, 2)
        assert test.difference.mean == 0.0

    table, tests, _ = tables(comparison)
    rates = [[cell.text for cell in row] for row in table.sections[-1]]
    assert rates == [
        ["FP/absent", "crkd", "1", "0/2", "", "–", "0/2"],
        ["FP/absent", "supervised", "2", "3/4", "", "–", "3/4"],
    ]
    assert any(note.startswith("FP/absent: cases without the class") for note in table.notes)
    assert tests.headings[4:6] == ["n", "pairs"]
    assert [row[0][5].text for row in tests.sections] == ["12", "12"]
    assert any(note.startswith("pairs: ") and note.endswith(" of 14.") for note in tests.notes)

    method = comparison.tree()["methods"][1]
    counts = {key: method["classes"]["myo"][key] for key in ("value", "absent", "false_positives")}
    assert counts == {"value": 2, "absent": 4, "false_positives": 3}
    assert (method["mean"]["absent"], method["mean"]["false_positives"]) == (4, 3)


def test_nothing_is_said_of_absent_classes_if_there_are_none(evaluated):
    table, tests, _ = tables(compare_runs([evaluated(), evaluated("supervised")]))
    assert [section[0][0].text for section in table.sections] == ["Dice %", "HD95 mm"]
    assert "pairs" not in tests.headings


def test_a_class_without_any_score_is_a_dash(evaluated):
    scores, sizes = np.full((7, 2, 2), [0.5, 4.0]), np.full((7, 2, 2), 9)
    scores[:, 1], sizes[:, 1] = NAN, [0, 3]
    runs = [evaluated(name, scores=scores, sizes=sizes) for name in ("crkd", "supervised")]
    table, tests, _ = tables(compare_runs(runs))
    row = [cell.text for cell in table.sections[0][0]]
    assert row == ["Dice %", "crkd", "1", "50.0", "[50.0, 50.0]", "50.0", "–"]
    assert table.sections[-1][0][-1].text == "7/7"
    assert tests.sections[0][0][5].text == "7"


def test_settings_separate_methods_which_folders_name(write_evaluation, rng):
    scores = rng.random((7, 2, 2))

    def run(folder, seed, **methods):
        config = {"methods": {"crkd": methods, "other": {"x": seed}}}
        return read_evaluation(write_evaluation(folder, scores, CASES, seed=seed, config=config))

    comparison = compare_runs(
        [run("full-seed1", 1), run("full-seed2", 2), run("bare-seed1", 1, pixel=0)]
    )
    assert [(entry.name, len(entry.runs)) for entry in comparison.entries] == [
        ("crkd (full)", 2),
        ("crkd (bare)", 1),
    ]
    with pytest.raises(UsageError, match="same method, settings and seed 1; give only one of them"):
        compare_runs([run("one", 1), run("two", 1)])


def test_numbers_of_labels_are_methods_of_their_own(evaluated, write_evaluation):
    """Two rounds of labeling with two seeds each: they score the same cases."""
    scores = np.full((7, 2, 2), [0.5, 4.0])
    runs = []
    for labeled in (3, 7):
        for seed in (1, 2):
            folder = f"{labeled}-seed{seed}"
            facts = {"labeled": labeled, "split": f"split-{labeled}", "seed": seed}
            gain = 0.01 * (labeled - 3) + 0.1 * seed
            file = write_evaluation(folder, scores + np.array([gain, 0.0]), CASES, **facts)
            runs.append(read_evaluation(file))
    comparison = compare_runs(runs)
    assert [(entry.name, len(entry.runs)) for entry in comparison.entries] == [
        ("crkd, 3 labeled", 2),
        ("crkd, 7 labeled", 2),
    ]
    assert comparison.tests[0].difference.mean == pytest.approx(-0.04)
    assert [entry.mean[0].mean for entry in comparison.entries] == pytest.approx([0.65, 0.69])
    assert comparison.published == []
    table = tables(comparison)[0]
    assert table.title == "acdc, test: 7 cases of 6 patients, strict protocol, 3 and 7 labeled"
    methods = comparison.tree()["methods"]
    assert [(tree["labeled"], tree["split"]) for tree in methods] == [
        (3, "split-3"),
        (7, "split-7"),
    ]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"dataset": "la"}, r"dataset \(acdc and la\)"),
        ({"protocol": "paper"}, r"protocol \(strict and paper\)"),
        ({"part": "val"}, r"part \(test and val\)"),
        ({"split": "3-seed1"}, r"split \(official-3 and 3-seed1\)"),
        ({"metrics": ("dice", "hd95_px")}, r"scores \(dice, hd95_mm and dice, hd95_px\)"),
        ({"classes": ("rv", "lv")}, r"classes \(rv = 1, myo = 2 and rv = 1, lv = 2\)"),
        ({"values": (1, 500)}, r"classes \(rv = 1, myo = 2 and rv = 1, myo = 500\)"),
        (
            {"cases": {**CASES, "g": "g"}},
            r"test cases \(0 are only in the first, 1 only in the second\)",
        ),
        ({"cases": {**CASES, "a2": "h"}}, "the patients of the cases"),
        ({"truth": "1" * 64}, "the labels of the test cases"),
        ({"images": "1" * 64}, "the images of the test cases"),
        (
            {"dataset": "la", "part": "val", "split": "official-4"},
            r"dataset \(acdc and la\); part \(test and val\); split",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(evaluated, facts, words):
    with pytest.raises(
        UsageError,
        match=f"crkd-seed1/.* and .*supervised-seed1/.* cannot be compared; they differ in {words}",
    ):
        compare_runs([evaluated(), evaluated("supervised", **facts)])


def test_finding_evaluations(write_evaluation, tmp_path, rng):
    folder = write_evaluation("run", rng.random((7, 2, 2)), CASES)
    run = folder.parent
    for given in (run, folder, folder / "summary.json", folder / "cases.csv"):
        assert find_evaluation(given, "strict", None) == folder
    (run / "best.pth").touch()
    command = f"run: crkd evaluate {run}/best.pth"
    with pytest.raises(
        UsageError,
        match=rf"evaluation of val \(it has evaluation-strict-test: .*; {command} --part val$",
    ):
        find_evaluation(run, "strict", "val")
    with pytest.raises(UsageError, match=f"{command} --protocol paper$"):
        find_evaluation(run, "paper", None)
    pooled = run / "evaluation-paper-val+test"
    folder.rename(pooled)
    assert find_evaluation(run, "paper", None) == pooled
    with pytest.raises(UsageError, match="neither a run folder"):
        find_evaluation(tmp_path, "strict", None)
    with pytest.raises(UsageError, match=r"best.pth is a file; give run folders"):
        find_evaluation(run / "best.pth", "strict", None)
    with pytest.raises(CrkdError, match=r"there is no .*nowhere"):
        find_evaluation(tmp_path / "nowhere", "strict", None)


def test_the_table_of_scores(evaluated):
    """The best mean is marked, and the best value of every class separately."""
    better = np.full((7, 2, 2), [0.8, 3.0])
    better[:, 0, 0] = 0.6
    worse = np.full((7, 2, 2), [0.5, 4.0])
    worse[:, 0, 0] = 0.65
    scores, tests, published = tables(
        compare_runs([evaluated("supervised", scores=worse), evaluated("crkd", scores=better)])
    )
    assert scores.title == "acdc, test: 7 cases of 6 patients, strict protocol, 3 labeled"
    assert [[cell.text for cell in row] for row in scores.sections[0]] == [
        ["Dice %", "supervised", "1", "57.5", "[57.5, 57.5]", "65.0", "50.0"],
        ["Dice %", "crkd", "1", "70.0", "[70.0, 70.0]", "60.0", "80.0"],
    ]
    assert [[cell.text for cell in row if cell.best] for row in scores.sections[0]] == [
        ["65.0"],
        ["70.0", "80.0"],
    ]
    # Smaller distances are better.
    assert [cell.text for cell in scores.sections[1][1] if cell.best] == ["3.00"] * 3
    assert [cell.text for cell in tests.sections[0][0]] == [
        "Dice %",
        "supervised − crkd",
        "-12.5",
        "[-12.5, -12.5]",
        "6",
        "0.031",
        "0.031",
    ]
    assert any(
        row[0].text == "CRKD" and row[1].text == "paper" and row[3].text == "85.69"
        for row in published.sections[0]
    )
    same = tables(
        compare_runs([evaluated("supervised", scores=better), evaluated("crkd", scores=better)])
    )[0]
    assert not any(cell.best for section in same.sections for row in section for cell in row)
    hidden = tables(compare_runs([evaluated()]), max_classes=1)[0]
    assert hidden.headings == ["score", "method", "runs", "mean ± SD", "95 % CI"]
    assert "the scores of every class" in hidden.notes[-1]


def test_values_of_classes_and_changed_data_are_in_the_table(evaluated):
    comparison = compare_runs(
        [evaluated(values=(1, 7), other_data=True), evaluated(seed=2, values=(1, 7))]
    )
    table = tables(comparison)[0]
    assert table.headings[-2:] == ["rv", "myo (7)"]
    folder = comparison.common.folder
    assert table.notes[0] == f"{folder}: the dataset has changed since training."
    assert comparison.tree()["other_data"] == table.notes[:1]


def test_json_has_no_nan(evaluated):
    scores = np.full((7, 2, 2), [0.5, NAN])
    tree = compare_runs([evaluated(scores=scores), evaluated("supervised", scores=scores)]).tree()
    assert "NaN" not in json.dumps(tree)
    assert tree["tests"][1] == {
        "metric": "hd95_mm",
        "first": "crkd",
        "second": "supervised",
        "mean": None,
        "low": None,
        "high": None,
        "n": 0,
        "pairs": 0,
        "left_out": 14,
        "p": None,
        "p_holm": None,
    }
