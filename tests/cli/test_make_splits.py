"""crkd make-splits as a user runs it."""

import json
import shutil

import pytest

from crkd_cli.data.folds import read_folds
from crkd_cli.data.splits import official_splits, read_split, seeded_order
from crkd_cli.data.store import RECIPE

ACDC = {f"patient{number:03d}": 2 for number in range(1, 101)}


@pytest.fixture
def run(cli, tmp_path):
    return lambda *args: cli("make-splits", *args, "--data-root", tmp_path / "data")


def test_the_official_split_is_shown_and_written(run, make_store):
    store = make_store("acdc", groups=ACDC)
    result = run("acdc", "--labeled", "3")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    for part, patients, images in (
        ("labeled", "3", "6"),
        ("unlabeled", "67", "134"),
        ("val", "10", "20"),
        ("test", "20", "40"),
    ):
        assert any({part, patients, images} <= set(row) for row in rows), part
    official = official_splits("acdc")
    assert official is not None
    assert read_split(store.root / "splits" / "3.yaml") == official.split("acdc", "3")
    assert (
        f"next: crkd train --dataset acdc --labeled 3 --data-root {store.root.parent.parent}"
        in result.stderr
    )
    assert "\x1b" not in result.stdout


def test_only_json_is_on_stdout(run, make_store):
    store = make_store("toy", groups=10, unlabeled={"p00"})
    result = run("toy", "--labeled", "2", "--val", "1", "--test", "2", "--json")
    tree = json.loads(result.stdout)
    parts = ("labeled", "unlabeled", "val", "test", "missing")
    assert [len(tree[part]) for part in parts] == [2, 5, 1, 2, 0]
    assert tree["file"] == str(store.root / "splits" / "2.yaml")
    assert read_split(store.root / "splits" / "2.yaml").labeled == tuple(tree["labeled"])


def test_the_sizes_chosen_for_own_data_are_shown(run, make_store):
    make_store("toy", groups=10)
    result = run("toy")
    assert result.exit_code == 0
    assert "10 labeled patients: test 2 (--test 20%), val 1 (--val 10%)" in result.stderr


def test_out_writes_to_another_file(run, make_store, tmp_path):
    store = make_store("toy")
    result = run("toy", "--labeled", "1", "--out", tmp_path / "mine.yaml", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert read_split(tmp_path / "mine.yaml").dataset == "toy"
    assert not (store.root / "splits").exists()


def test_present_only_lists_what_is_missing(run, make_store):
    make_store("acdc", groups={"patient099": 2, "patient003": 2})
    refused = run("acdc", "--labeled", "3")
    assert refused.exit_code == 1
    assert "add --present-only" in refused.stderr
    result = run("acdc", "--labeled", "3", "--present-only")
    assert result.exit_code == 0
    assert "98 official cases are not in the store: patient004, patient005" in result.stderr


def test_folds_are_shown_and_written(run, make_store):
    store = make_store("toy", groups=10, unlabeled={"p00"})
    result = run("toy", "--folds", "3", "--labeled", "2")
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    folds = read_folds(store.root / "splits" / "folds" / "2.yaml")
    for number, split in enumerate(folds.splits(), start=1):
        names = ", ".join(split.groups_of("fold"))
        assert [str(number), "2", "5", "0", "3", "3", names] in rows
    assert not (store.root / "splits" / "2.yaml").exists()
    assert "9 labeled patients in 3 folds; each fold holds out 3, and scores them" in (
        result.stderr
    )
    assert "next: crkd train --dataset toy --labeled 2 --data-root" in result.stderr
    assert result.stderr.endswith(" --folds\n")


def test_folds_as_json(run, make_store, tmp_path):
    make_store("toy", groups=10, unlabeled={"p00"})
    file = tmp_path / "folds.yaml"
    result = run("toy", "--folds", "2", "--test", "1", "--val", "1", "--out", file, "--json")
    tree = json.loads(result.stdout)
    assert (tree["name"], tree["file"]) == ("all-folds2-seed1337", str(file))
    assert [fold["fold"] for fold in tree["folds"]] == [1, 2]
    parts = ("held_out", "labeled", "unlabeled", "val")
    assert [len(tree["folds"][0][part]) for part in parts] == [4, 3, 1, 1]
    assert tuple(tree["test"]) == read_folds(file).test


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["toy", "--folds", "9"], 2, "--folds 9: toy has 8 labeled patients to hold out"),
        (["toy", "--folds", "2", "--keep", "4"], 2, "drop --keep or --folds"),
        (["toy", "--labeled", "99"], 2, "asks for 99 labeled patients, but toy has"),
        (["toy", "--labeled", "few"], 2, "--labeled 'few': expected a number"),
        (["toy", "--val", "half"], 2, "--val 'half': expected a number"),
        (["toi", "--labeled", "1"], 2, "did you mean 'toy'"),
        (["toy", "--labeled", "1", "--out", "/dev/null/x"], 1, "cannot write /dev/null/x"),
    ],
)
def test_errors_are_one_line(run, make_store, args, code, message):
    make_store("toy")
    result = run(*args)
    assert result.exit_code == code
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_store_made_by_another_recipe(run, make_store):
    file = make_store("toy").root / "index.json"
    file.write_text(file.read_text().replace(f'"recipe": {RECIPE}', '"recipe": 0'))
    result = run("toy", "--labeled", "1")
    assert result.exit_code == 1
    advice = f"this version needs recipe {RECIPE}; run: crkd prepare-data toy"
    assert f"was made by recipe 0, but {advice}" in result.stderr


def test_official_labeled_cases_without_labels(run, make_store):
    """No split is written if it could not be used for training."""
    groups = ["patient099", "patient038", "patient050", "patient003"]
    store = make_store("acdc", groups=dict.fromkeys(groups, 1), unlabeled=set(groups))
    result = run("acdc", "--labeled", "3", "--present-only")
    assert result.exit_code == 1
    assert "have no label: patient099, patient038, patient050" in result.stderr
    assert not (store.root / "splits").exists()


def test_new_labels_join_the_training_part_only(run, make_store, tmp_path):
    """The test part would change if the split were drawn again."""
    late = seeded_order([f"p{number:02d}" for number in range(20)], 1337)[:5]
    store = make_store(groups=20, unlabeled=set(late))
    assert run("toy", "--labeled", "4").exit_code == 0
    first = read_split(store.root / "splits" / "4.yaml")
    shutil.copytree(store.root / "splits", tmp_path / "splits")
    shutil.rmtree(store.root)
    store = make_store(groups=22)  # two new images as well
    shutil.copytree(tmp_path / "splits", store.root / "splits")

    drawn = run("toy", "--out", tmp_path / "other.yaml")
    other = read_split(tmp_path / "other.yaml")
    leaked = [group for group in other.labeled if group in first.test]
    assert leaked
    warning = f"warning: {len(leaked)} test patient"
    assert warning in drawn.stderr
    assert "--keep 4 keeps val and test as they were" in drawn.stderr

    result = run("toy", "--keep", "4")
    assert result.exit_code == 0
    assert "warning" not in result.stderr
    assert "val and test are those of split 4-seed1337" in result.stderr
    assert "13 more with labels train: " in result.stderr
    second = read_split(store.root / "splits" / "all.yaml")
    assert (second.val, second.test) == (first.val, first.test)
    held_out = {*first.val, *first.test}
    assert set(second.labeled) == set(second.train) == set(store.groups) - held_out
    assert second.labeled[:4] == first.labeled
    assert second.name == "all-extends-4-seed1337"
    run("toy", "--keep", "all", "--labeled", "6")
    third = read_split(store.root / "splits" / "6.yaml")
    assert third.labeled == second.labeled[:6]
    assert third.name == "6-extends-4-seed1337"
    run("toy", "--keep", store.root / "splits" / "4.yaml", "--labeled", "6")
    assert read_split(store.root / "splits" / "6.yaml") == third


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["toy", "--keep", "9"], "no split of toy with --labeled 9 exists"),
        (["toy", "--keep", "gone.yaml"], "cannot read the split gone.yaml"),
        (["toy", "--keep", "4", "--val", "2"], "--keep keeps val and test; drop --val"),
        (["toy", "--keep", "4", "--labeled", "99"], "asks for 99 labeled patients, but toy has 14"),
        (["acdc", "--keep", "3"], "the val and test part of acdc are official; drop --keep"),
    ],
)
def test_what_cannot_be_kept(run, make_store, args, message):
    make_store(groups=20)
    make_store("acdc", groups={"patient099": 2})
    run("toy", "--labeled", "4")
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
