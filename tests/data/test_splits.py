"""Splits: official ones, seeded ones of own data, and all mistakes in them."""

import hashlib

import msgspec
import pytest
import yaml

from crkd_cli.data.make_splits import make_split
from crkd_cli.data.splits import (
    Split,
    find_split,
    label_key,
    official_splits,
    parse_count,
    read_split,
    seeded_order,
    split_file,
    write_split,
)
from crkd_cli.data.store import Store, numbered_classes, write_index
from crkd_cli.errors import CrkdError, UsageError

ACDC = {f"patient{number:03d}": 2 for number in range(1, 101)}


@pytest.mark.parametrize(
    ("name", "parts", "labeled"),
    [  # train, val and test, as the papers of the field state them
        ("acdc", (70, 10, 20), {"1": 1, "3": 3, "7": 7, "14": 14}),
        ("la", (80, 0, 20), {"4": 4, "8": 8, "16": 16}),
        ("isic2018", (2075, 0, 519), {"5%": 103, "10%": 207, "20%": 415}),
        ("kvasir", (880, 0, 120), {"5%": 44, "10%": 88, "20%": 176}),
    ],
)
def test_official_splits_have_the_published_sizes(name, parts, labeled):
    official = official_splits(name)
    assert official is not None
    assert {key: len(groups) for key, groups in official.labeled.items()} == labeled
    for key, count in labeled.items():
        split = official.split(
            name, key
        )  # checks that parts are disjoint and labeled lies in train
        assert (len(split.train), len(split.val), len(split.test)) == parts
        assert len(split.unlabeled) == parts[0] - count


def test_own_data_has_no_official_split():
    assert official_splits("myset") is None


def test_cases_are_in_the_order_of_the_groups(make_store):
    store = make_store(groups={"a": 2, "b": 1, "c": 2, "d": 1}, unlabeled={"b"})
    split = Split(dataset="toy", name="x", train=("c", "b", "a"), labeled=("a",), test=("d",))
    assert split.cases(store, "labeled") == ["a_0", "a_1"]
    assert split.cases(store, "unlabeled") == ["c_0", "c_1", "b"]
    assert split.cases(store, "val") == []
    assert split.cases(store, "test") == ["d"]


def test_a_missing_group_is_named(make_store):
    split = Split(dataset="toy", name="x", train=("p00", "gone"), labeled=("p00",))
    with pytest.raises(CrkdError, match="lacks 1 of the 2 unlabeled cases of split x: gone"):
        split.cases(make_store(), "unlabeled")


def test_a_labeled_group_without_labels_is_an_error(make_store):
    split = Split(dataset="toy", name="x", train=("p00",), labeled=("p00",))
    with pytest.raises(CrkdError, match="the labeled cases of split x have no label: p00"):
        split.cases(make_store(unlabeled={"p00"}), "labeled")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": ["a", "b"], "labeled": ["a"], "test": ["b"]}, "disjoint.*: b"),
        ({"train": ["a", "a"], "labeled": ["a"]}, "disjoint.*: a"),
        ({"train": ["a"], "labeled": ["b"]}, "labeled must be a subset of train.*: b"),
        ({"train": ["a"], "labeled": ["a", "a"]}, "more than once"),
        ({"train": ["a"], "labeled": []}, "labeled is empty"),
        ({"train": ["a"], "labeled": ["a"], "vall": []}, "unknown key vall; did you mean val?"),
        ({"train": [1], "labeled": [1]}, "expected text, got a whole number"),
        ({"labeled": ["a"]}, "is not a split"),
    ],
)
def test_errors_in_split_files_are_one_line(tmp_path, parts, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({"dataset": "toy", "name": "x", **parts}))
    with pytest.raises(UsageError, match=message) as caught:
        read_split(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a split"),
        (b"[[[[", "is not valid YAML"),
        (b"train: [[[a]]]\nlabeled: {a: 1}", "expected"),
        (b"train: &a [x]\nlabeled: *a", "aliases are not supported, line 2"),
        (b"train: [a]\nlabeled: [a]\ntrain: [b]", "train occurs twice, line 3"),
        (b"train: [caf\xe9]\nlabeled: []", "not text in UTF-8, at byte 11"),
        (b"train: [a\0]", "is not valid YAML"),
        (b"#" * 5_000_000, "longer than 4 MB"),
    ],
    ids=range(8),
)
def test_hostile_split_files_are_one_line(tmp_path, content, message):
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_split(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["1e9", "9" * 5000, "1e9%", "101%", "9" * 400 + "%", "-1", "nan", "inf%", "٣", "0x5", ""],
)
def test_counts_are_plain_numbers(text):
    for read in (label_key, lambda text: parse_count(text, 10, "--val")):
        with pytest.raises(UsageError) as caught:
            read(text)
        assert len(str(caught.value)) < 250


def test_ids_that_look_like_numbers_are_read_back(tmp_path):
    split = Split(
        dataset="toy", name="x", train=("001", "1e3", "no"), labeled=("no",), test=("2020-01-01",)
    )
    write_split(split, tmp_path / "s.yaml")
    assert read_split(tmp_path / "s.yaml") == split


def test_the_order_is_that_of_the_hashes():
    names = ["b", "a", "c"]
    assert seeded_order(names, 7) == sorted(
        names, key=lambda name: hashlib.sha256(f"7:{name}".encode()).hexdigest()
    )
    # This must never change, because papers name splits. Computed by: printf 1337:p0 | sha256sum …
    order = ["p0", "p5", "p2", "p4", "p3", "p1", "p7", "p6"]
    assert seeded_order([f"p{number}" for number in range(8)], 1337) == order


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [("4", 10, 4), ("10%", 74, 7), ("5%", 10, 1), ("1%", 10, 1), ("0%", 10, 0), ("0", 9, 0)],
)
def test_counts(text, total, expected):
    assert parse_count(text, total, "--val") == expected


@pytest.mark.parametrize("text", ["-1", "five", "5 %%", "200%", ""])
def test_invalid_counts(text):
    with pytest.raises(UsageError, match="--val"):
        parse_count(text, 10, "--val")


@pytest.mark.parametrize(
    ("typed", "key"), [("4", "4"), ("04", "4"), ("5%", "5%"), ("5.0%", "5%"), ("ALL", "all")]
)
def test_label_counts_have_one_canonical_form(typed, key):
    assert label_key(typed) == key


@pytest.mark.parametrize("typed", ["0", "0%", "-3", "four", "4.5"])
def test_invalid_label_counts(typed):
    with pytest.raises(UsageError, match="--labeled"):
        label_key(typed)


def test_own_data_is_divided_completely(make_store):
    store = make_store(
        groups={f"g{number:02d}": 1 for number in range(30)},
        unlabeled={f"g{n:02d}" for n in range(10)},
    )
    split = make_split(store, "3", None, None, 1).split
    assert (len(split.test), len(split.val), len(split.train), len(split.labeled)) == (4, 2, 24, 3)
    assert {*split.train, *split.val, *split.test} == set(store.groups)
    # Groups without a label always train.
    assert {f"g{number:02d}" for number in range(10)} <= set(split.unlabeled)
    more = make_split(store, "6", None, None, 1).split
    assert set(split.labeled) < set(more.labeled)
    assert more.test == split.test
    assert make_split(store, "3", None, None, 2).split.test != split.test
    # All groups that are not held out.
    assert len(make_split(store, None, None, None, 1).split.labeled) == 14
    assert len(make_split(store, "25%", None, None, 1).split.labeled) == 6  # of the 24 train groups


def test_too_few_labeled_cases(make_store):
    store = make_store(groups=6, unlabeled={"p00"})
    message = (
        r"--labeled 9 asks for 9 labeled patients, but toy has 3 of them to train on "
        r"\(test has 1, val 1 of the 5\); give --labeled 3 or fewer, or smaller --test and --val"
    )
    with pytest.raises(UsageError, match=message):
        make_split(store, "9", None, None, 1)
    with pytest.raises(UsageError, match="test 3 and val 2 leave none to train on"):
        make_split(store, "1", "2", "3", 1)


def test_no_labels_at_all(make_store):
    with pytest.raises(CrkdError, match="no case has a label"):
        make_split(make_store(groups=1, unlabeled={"p00"}), None, None, None, 1)


def test_public_datasets_keep_their_official_parts(make_store):
    store = make_store("acdc", groups=ACDC)
    official = official_splits("acdc")
    assert official is not None
    assert make_split(store, "3", None, None, 5).split == official.split("acdc", "3")
    drawn = make_split(store, "5%", None, None, 5).split  # 5 % of 70 patients, rounded half up
    assert (drawn.train, drawn.val, drawn.test) == (official.train, official.val, official.test)
    assert len(drawn.labeled) == 4
    with pytest.raises(UsageError, match="10 official validation cases"):
        make_split(store, "3", "2", None, 5)
    with pytest.raises(UsageError, match="20 official test cases"):
        make_split(store, "3", None, "2", 5)
    with pytest.raises(UsageError, match="official: 1, 3, 7, 14"):
        make_split(store, None, None, None, 5)


def test_validation_cases_are_taken_from_the_labeled_ones(make_store):
    official = official_splits("la")
    assert official is not None
    store = make_store("la", dims=2, groups=dict.fromkeys((*official.train, *official.test), 1))
    split = make_split(store, "4", "25%", None, 1).split
    assert set(split.labeled) | set(split.val) == set(official.labeled["4"])
    assert (len(split.labeled), len(split.val), len(split.train)) == (3, 1, 79)
    assert split.unlabeled == official.split("la", "4").unlabeled
    with pytest.raises(UsageError, match="leaves none to train on"):
        make_split(store, "4", "4", None, 1)


def test_present_only_uses_the_cases_that_exist(make_store):
    store = make_store("acdc", groups={"patient099": 2, "patient003": 2, "patient011": 2})
    with pytest.raises(
        CrkdError, match=r"lacks 97 of the 100 cases.*patient004.* and 92 more; .*--present-only"
    ):
        make_split(store, "3", None, None, 1)
    new = make_split(store, "3", None, None, 1, present_only=True)
    assert new.split.train == ("patient003", "patient099")
    assert new.split.labeled == ("patient099",)
    assert (new.split.val, new.split.test) == ((), ("patient011",))
    assert len(new.missing) == 97


def test_present_only_without_a_labeled_case(make_store):
    with pytest.raises(CrkdError, match="none of the labeled cases of official-3"):
        make_split(
            make_store("acdc", groups={"patient003": 2}), "3", None, None, 1, present_only=True
        )


def test_training_uses_the_split_made_last_else_the_official_one(make_store):
    store = make_store("acdc", groups=ACDC)
    assert find_split(store, "3").name == "official-3"
    custom = Split(dataset="acdc", name="mine", train=("patient001",), labeled=("patient001",))
    write_split(custom, split_file(store, "3"))
    assert find_split(store, "3") == custom
    assert find_split(store, "7").name == "official-7"
    with pytest.raises(
        UsageError, match=r"--labeled 4 .*: 1, 3, 7, 14; made: 3; .*make-splits acdc --labeled 4"
    ):
        find_split(store, "4")


def test_own_data_needs_make_splits_first(make_store):
    store = make_store("toy")
    with pytest.raises(UsageError, match="make another with: crkd make-splits toy --labeled 4"):
        find_split(store, "4")
    with pytest.raises(UsageError, match="--labeled is missing"):
        find_split(store, None)
    split = make_split(store, None, None, None, 1).split
    write_split(split, split_file(store, "all"))
    assert find_split(store, None) == split  # the only one
    assert find_split(store, None, split_file(store, "all")) == split
    with pytest.raises(UsageError, match="--labeled and --split both choose the labeled cases"):
        find_split(store, "9", split_file(store, "all"))


def with_classes(store, held):
    """Replace the classes that the cases of a store hold: {"p00": {1, 2}}; others hold none."""
    cases = [
        msgspec.structs.replace(
            case, class_sizes=(9, *(int(k in held.get(case.id, ())) for k in (1, 2)))
        )
        for case in store.index.cases
    ]
    spec = msgspec.structs.replace(store.spec, classes=numbered_classes(("background", "a", "b")))
    index = msgspec.structs.replace(store.index, spec=spec, cases=tuple(cases))
    write_index(store.root, index)
    return Store(store.root)


@pytest.mark.parametrize("seed", range(10))
def test_every_part_of_own_data_holds_every_class(make_store, seed):
    """Class b is in 3 of 20 patients, and 8 have no foreground."""
    held = {f"p{number:02d}": {1} for number in range(9)} | {f"p{n:02d}": {2} for n in (9, 10, 11)}
    store = with_classes(make_store(groups=20), held)
    new = make_split(store, "5", "15%", "20%", seed)
    assert not any("warning" in note for note in new.notes)
    for part in ("labeled", "val", "test"):
        kinds = [next(iter(held.get(group, {0}))) for group in getattr(new.split, part)]
        assert set(kinds) == {0, 1, 2}, part
    larger = make_split(store, "9", "15%", "20%", seed).split
    assert set(new.split.labeled) < set(larger.labeled)
    assert (larger.val, larger.test) == (new.split.val, new.split.test)
    assert make_split(store, "5", "15%", "20%", seed) == new


@pytest.mark.parametrize("seed", range(3))
def test_a_split_with_nothing_to_spread_stays_as_it_was(make_store, seed):
    """The first groups of the seeded order test, the next ones validate, the next are labeled."""
    store = make_store(groups=20)
    split = make_split(store, "4", "2", "3", seed).split
    order = seeded_order(store.groups, seed)
    assert split.test == tuple(sorted(order[:3]))
    assert split.val == tuple(sorted(order[3:5]))
    assert split.labeled == tuple(order[5:9])


def test_the_last_holders_of_a_class_train_first_then_test(make_store):
    plain = make_store(groups=8)
    holders = seeded_order(plain.groups, 1)[:3]  # in the test part, if nothing were spread
    for count, parts in (
        (1, {"labeled"}),
        (2, {"labeled", "test"}),
        (3, {"labeled", "val", "test"}),
    ):
        held = {f"p{n:02d}": {1} for n in range(8)} | {p: {1, 2} for p in holders[:count]}
        new = make_split(with_classes(plain, held), "1", "1", "3", 1)
        having = {
            part
            for part in ("labeled", "val", "test")
            if set(holders[:count]) & set(getattr(new.split, part))
        }
        assert having == parts
        warnings = " ".join(note for note in new.notes if note.startswith("warning"))
        assert ("no val case contains" in warnings) == (count < 3)
        assert ("no test case contains, so not scored: b (2)" in warnings) == (count < 2)


def test_parts_of_public_datasets_that_lack_a_class_are_noted(make_store):
    store = with_classes(make_store("acdc", groups=ACDC), {"patient003_0": {1}})
    official = official_splits("acdc")
    assert official is not None
    new = make_split(store, "3", None, None, 5)
    assert new.split == official.split("acdc", "3")
    assert new.notes == (
        "warning: classes that no labeled case contains, so not learned: a (1)",
        "warning: classes that no val case contains, so not used to choose best.pth: a (1)",
        "warning: classes that no test case contains, so not scored: a (1)",
        "warning: classes that no case contains: b (2)",
    )


@pytest.mark.realdata
def test_real_cases_have_the_ids_of_the_official_splits(shared_data):
    ids = {
        "acdc": {path.name.split("_")[0] for path in (shared_data / "acdc" / "data").glob("*.h5")}
    }
    ids["la"] = {path.parent.name for path in (shared_data / "la").glob("*/*/mri_norm2.h5")}
    ids["isic2018"] = {path.stem for path in (shared_data / "isic2018").glob("*Input/*.jpg")}
    ids["kvasir"] = {path.stem for path in (shared_data / "kvasir").glob("*/images/*.jpg")}
    for name, groups in ids.items():
        official = official_splits(name)
        assert official is not None
        assert groups
        assert groups <= {*official.train, *official.val, *official.test}
