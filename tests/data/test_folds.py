"""Folds: each labeled patient is held out once, and no patient is in two parts of a fold."""

import itertools

import msgspec
import pytest
import yaml

from crkd_cli.data.folds import find_folds, folds_file, read_folds, write_folds
from crkd_cli.data.make_folds import make_folds
from crkd_cli.data.splits import find_split, official_splits, read_split
from crkd_cli.errors import CrkdError, UsageError
from tests.data.test_splits import ACDC, with_classes

EIGHT = {f"p{number}": 1 for number in range(8)}  # p0 p5 p2 p4 p3 p1 p7 p6 by the seed 1337


@pytest.mark.parametrize(
    ("count", "labeled", "val", "test"),
    [(5, "3", None, None), (2, None, None, None), (21, "all", "1", None), (4, "10%", "2", "20%")],
)
def test_every_labeled_patient_is_held_out_once(make_store, count, labeled, val, test):
    groups = {f"g{number:02d}": 1 + number % 2 for number in range(30)}
    without_label = {f"g{number:02d}" for number in range(9)}
    store = make_store(groups=groups, unlabeled=without_label)
    folds = make_folds(store, count, labeled, val, test, seed=7).folds
    held_out = [fold.held_out for fold in folds.folds]
    assert sorted([*itertools.chain(*held_out), *folds.test]) == sorted(
        groups.keys() - without_label
    )
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    for number, split in enumerate(folds.splits(), start=1):
        parts = [split.labeled, split.unlabeled, split.val, split.test, split.groups_of("fold")]
        assert sorted(itertools.chain(*parts)) == sorted(groups)  # each patient in one part
        assert without_label <= set(split.unlabeled)
        assert split.groups_of("fold") == held_out[number - 1]
        assert split.title == f"{folds.name}, fold {number} of {count}"
        assert len(split.val) == int(val or 0)
        cases = split.cases(store, "fold")
        assert cases == [case.id for group in held_out[number - 1] for case in store.groups[group]]
    if labeled == "3":
        assert {len(split.labeled) for split in folds.splits()} == {3}


def test_the_same_seed_gives_the_same_folds(make_store):
    """By hand: the seeded order in pieces, and the labels of the pieces that follow."""
    store = make_store(groups=EIGHT)
    folds = make_folds(store, 4, "2", None, None, 1337).folds
    assert folds.name == "2-folds4-seed1337"
    assert [fold.held_out for fold in folds.folds] == [
        ("p0", "p5"),
        ("p2", "p4"),
        ("p1", "p3"),
        ("p6", "p7"),
    ]
    assert [fold.labeled for fold in folds.folds] == [
        ("p2", "p4"),
        ("p3", "p1"),
        ("p7", "p6"),
        ("p0", "p5"),
    ]
    more = make_folds(store, 4, "5", None, None, 1337).folds
    assert more.folds[2].labeled == ("p7", "p6", "p0", "p5", "p2")
    assert [fold.held_out for fold in more.folds] == [fold.held_out for fold in folds.folds]
    assert make_folds(store, 4, "2", None, None, 1).folds.folds != folds.folds
    validated = make_folds(store, 4, "2", "1", None, 1337).folds
    assert (validated.folds[0].val, validated.folds[0].labeled) == (("p2",), ("p4", "p3"))


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_spread_over_the_folds(make_store, seed):
    """Class b is in 3 of 12 patients: one in each of 3 folds, and in the labels of every fold."""
    held = {f"p{number:02d}": {1, 2} if number < 3 else {1} for number in range(12)}
    store = with_classes(make_store(groups=12), held)
    new = make_folds(store, 3, "4", None, None, seed)
    holders = {"p00", "p01", "p02"}
    for fold in new.folds.folds:
        assert len(holders & set(fold.held_out)) == 1
        assert holders & set(fold.labeled)
    assert not any("warning" in note for note in new.notes)


def test_a_class_of_a_single_patient_is_missing_in_one_fold(make_store):
    held = {f"p{number:02d}": {1, 2} if number == 3 else {1} for number in range(6)}
    new = make_folds(with_classes(make_store(groups=6), held), 3, None, None, None, 1)
    warnings = [note for note in new.notes if "warning" in note]
    assert warnings == [
        "warning: in fold 3, classes that no labeled case contains, so not learned: b (2)"
    ]


def test_notes_say_what_the_options_mean(make_store):
    store = make_store(groups=10, unlabeled={"p00"})
    assert make_folds(store, 4, "3", "1", "1", 1).notes == (
        "8 labeled patients in 4 folds; each fold holds out 2, and scores them",
        "every fold trains with the labels of 3 patients (--labeled 3); "
        "the other patients that it does not hold out are unlabeled",
        "val: 1 other labeled patient in every fold (--val 1)",
        "test: 1 patient in no fold (--test 1)",
        "without a label, used as unlabeled in every fold: 1 patient",
    )
    assert make_folds(store, 4, None, None, None, 1).notes[1:3] == (
        "every fold trains with the labels of 6 to 7 patients (--labeled all)",
        "no validation part: the last checkpoint of a fold is its result "
        "(--val takes one from the patients that it does not hold out)",
    )


def test_official_parts_are_in_no_fold(make_store):
    store, official = make_store("acdc", groups=ACDC), official_splits("acdc")
    assert official is not None
    folds = make_folds(store, 5, "7", None, None, 1337).folds
    held_out = [group for fold in folds.folds for group in fold.held_out]
    assert sorted(held_out) == sorted(official.train)
    assert folds.test == official.test
    assert {fold.val for fold in folds.folds} == {official.val}
    assert len({group for fold in folds.folds for group in fold.labeled}) == 35  # no label twice
    with pytest.raises(UsageError, match="10 official validation cases"):
        make_folds(store, 5, "7", "2", None, 1)
    with pytest.raises(UsageError, match="--labeled is missing; official: 1, 3, 7, 14"):
        make_folds(store, 5, None, None, None, 1)


def test_a_part_of_a_public_dataset(make_store):
    store = make_store("acdc", groups={f"patient{number:03d}": 2 for number in range(1, 41)})
    with pytest.raises(CrkdError, match="lacks 60 of the 100 cases of the official split"):
        make_folds(store, 2, "3", None, None, 1)
    new = make_folds(store, 2, "3", None, None, 1, present_only=True)
    assert len(new.missing) == 60
    assert new.folds.name == "3-folds2-seed1-present"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((8, None, None, None), "--folds 8: toy has 7 labeled patients .* from 2 to 7"),
        ((1, None, None, None), "--folds 1: .* from 2 to 7"),
        ((2, None, None, "6"), "--folds 2: toy has 1 labeled patient .*; at least 2 are needed"),
        (
            (3, "5", None, None),
            "--labeled 5 asks for 5 labeled patients in every fold, but a fold that holds out 3 "
            "has 4 of them to train on; give --labeled 4 or fewer",
        ),
        ((3, "90%", None, None), "--labeled 90% asks for 6 labeled patients"),
        ((3, None, "4", None), "holds out 3 of 7 labeled patients and validates on 4 has none"),
        ((3, "few", None, None), "--labeled 'few': expected a number"),
    ],
)
def test_impossible_folds(make_store, options, message):
    store = make_store(groups=10, unlabeled={"p00", "p01", "p02"})
    with pytest.raises(UsageError, match=message):
        make_folds(store, *options, seed=1)


def test_folds_without_labels(make_store):
    with pytest.raises(CrkdError, match="no case has a label"):
        make_folds(make_store(groups=1, unlabeled={"p00"}), 2, None, None, None, 1)


def test_training_takes_the_folds_made_last(make_store, tmp_path):
    store = make_store(groups=EIGHT)
    with pytest.raises(
        UsageError, match="no folds of toy exist; make them with: crkd make-splits toy --labeled N"
    ):
        find_folds(store, None)
    folds = {key: make_folds(store, 2, key, None, None, 1).folds for key in ("2", "3")}
    write_folds(folds["2"], folds_file(store, "2"))
    assert find_folds(store, None) == find_folds(store, "2") == folds["2"]
    with pytest.raises(UsageError, match="no folds of toy with --labeled 3 exist; made: 2; make"):
        find_folds(store, "3")
    write_folds(folds["3"], folds_file(store, "3"))
    with pytest.raises(UsageError, match="--labeled is missing; made: 2, 3; make them with"):
        find_folds(store, None)
    with pytest.raises(UsageError, match="--labeled is missing"):
        find_split(store, None)  # folds are not taken for a split
    file = tmp_path / "folds.yaml"
    write_folds(folds["3"], file)
    assert find_folds(store, None, file) == folds["3"]
    with pytest.raises(UsageError, match="--labeled and --split both"):
        find_folds(store, "3", file)
    with pytest.raises(UsageError, match="add --folds, or --fold N"):
        read_split(file)
    write_folds(msgspec.structs.replace(folds["3"], dataset="other"), file)
    with pytest.raises(UsageError, match="is a split of other, not of toy"):
        find_folds(store, None, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": [{"held_out": ["a"], "labeled": ["b"]}]}, "at least two folds"),
        ({"train": ["a", "b"]}, "held out by a fold, but not in train: c"),
        ({"test": ["c"]}, "must be disjoint, but these occur more than once: c"),
        ({"train": 3}, "expected"),
        ({"fold": []}, "unknown key fold; did you mean folds?"),
        ({0: ["b"]}, "held out by several folds: b"),
        ({0: []}, "fold 1 holds out no patient"),
        ({0: ["a", "b"]}, "held out by several folds: b"),
    ],
)
def test_errors_in_files_of_folds_are_one_line(tmp_path, change, message):
    tree = {
        "dataset": "toy",
        "name": "x",
        "train": ["a", "b", "c"],
        "folds": [
            {"held_out": ["a"], "labeled": ["b"]},
            {"held_out": ["b", "c"], "labeled": ["a"]},
        ],
    }
    file = tmp_path / "folds.yaml"
    if 0 in change:
        tree["folds"][0]["held_out"] = change[0]
    else:
        tree |= change
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UsageError, match=message) as caught:
        read_folds(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_a_fold_holds_out_is_refused(tmp_path):
    fold = {"held_out": ["a"], "labeled": ["a"]}
    other = {"held_out": ["b"], "labeled": ["a"]}
    tree = {"dataset": "toy", "name": "x", "train": ["a", "b"], "folds": [fold, other]}
    (tmp_path / "folds.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UsageError, match="labeled must be a subset of train, but train lacks: a"):
        read_folds(tmp_path / "folds.yaml")
    (tmp_path / "folds.yaml").write_text("train: [a]\nlabeled: [a]")
    with pytest.raises(UsageError, match="has no folds; drop --folds"):
        read_folds(tmp_path / "folds.yaml")
