"""The files of an evaluation: they belong together, damage is named, names are only text."""

import csv
import hashlib
import math
import re
from pathlib import Path

import msgspec
import pytest

from crkd_cli.cli.bars import progress
from crkd_cli.config import Frame
from crkd_cli.data.store import ClassInfo, write_index
from crkd_cli.errors import CrkdError
from crkd_cli.evaluation.evaluate import evaluate
from crkd_cli.evaluation.files import write_files
from crkd_cli.evaluation.results import read_evaluation
from crkd_cli.reporting.compare import compare_runs
from crkd_cli.reporting.tables import write_comparison
from tests.conftest import edit_summary

CASES = {"a": "a", "b": "b", "c": "c"}
FRAME = Frame(resize=(32, 32))


@pytest.fixture
def folder(write_evaluation, rng):
    return write_evaluation("run", rng.random((3, 2, 2)), CASES)


def summary(**changes):
    """Return damage that changes or removes entries of summary.json, and renews its digest."""
    return lambda folder: edit_summary(folder, **changes)


def content(name, new):
    """Return damage that replaces the bytes of a file."""
    return lambda folder: (folder / name).write_bytes(new)


def swapped(name, old, new):
    """Return damage that replaces text in a file."""
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def replaced(old, new, *, digest=True):
    """Return damage that replaces text in cases.csv, and by default also its digest."""

    def damage(folder):
        text = re.sub(old, new, (folder / "cases.csv").read_text())
        (folder / "cases.csv").write_text(text)
        rows = text.count("\n") - 1
        facts = {"rows": rows, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        if digest:
            summary(cases_csv=facts)(folder)

    return damage


DEEP = b"[" * 100_000 + b"]" * 100_000
LONG = b"protocol,case\nstrict," + b"x" * 150_000 + b"\n"


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (content("summary.json", b""), "summary.json", "Expecting value"),
        (content("summary.json", b"{"), "summary.json", "Expecting property name"),
        (content("summary.json", b"[]"), "summary.json", "has no attribute"),
        (content("summary.json", DEEP), "summary.json", "recursion"),
        (content("summary.json", b'{"format": "\xff"}'), "summary.json", "utf-8"),
        (summary(split="\ud800"), "summary.json", "surrogates"),
        (content("summary.json", b"9" * 5000), "summary.json", "digits"),
        (summary(step="ten"), "summary.json", "Expected `int`"),
        (summary(seed=None), "summary.json", "missing required field `seed`"),
        (summary(classes=["rv", "myo"]), "summary.json", "Expected `object`"),
        (summary(config={"methods": 3, "train": {}}), "summary.json", "has no attribute"),
        (summary(config={"methods": {}}), "summary.json", "train"),
        (summary(mean={"hd95_mm": {}}), "summary.json", "no Dice"),
        (summary(checkpoint=""), "summary.json", "no checkpoint"),
        (summary(checkpoint="/"), "summary.json", "no checkpoint"),
        (swapped("summary.json", '"crkd"', '"bcp"'), "summary.json", "digest does not match"),
        (swapped("summary.json", '"seed": 1', '"seed": 3'), "summary.json", "digest does not"),
        (swapped("summary.json", '"sha256": "', '"sha256": "0'), "summary.json", "digest does not"),
        (lambda folder: (folder / "cases.csv").unlink(), "cases.csv", "missing"),
        (content("cases.csv", b""), "cases.csv", "not the table of 6 rows"),
        (content("cases.csv", LONG), "cases.csv", "field larger than"),
        (content("cases.csv", b"\xff\xfe"), "cases.csv", "utf-8"),
        (content("cases.csv", b"protocol,case\n\0,a\n"), "cases.csv", ""),
        (replaced("strict,c,.*\n", "", digest=False), "cases.csv", "not the table of 6 rows"),
        (replaced("0\\.", "1.", digest=False), "cases.csv", "not the table of 6 rows"),
        (replaced("strict,c,c,myo.*\n", ""), "cases.csv", "rows are missing or duplicated"),
        (replaced("strict,c,c,myo", "strict,c,c,rv"), "cases.csv", "has value 2, not 1"),
        (replaced("strict,c,c,myo,2", "strict,c,c,rv,1"), "cases.csv", "missing or duplicated"),
        (replaced("rv", "lv"), "cases.csv", "lv"),
        (replaced("dice", "jaccard"), "cases.csv", "dice"),
        (replaced("rv,1,9,9,[0-9.]+", "rv,1,9,9,zero"), "cases.csv", "zero"),
        (replaced("rv,1,9,9,[0-9.]+", "rv,1,9,9,7.0"), "cases.csv", "7.0 is not a value of dice"),
        (replaced("rv,1,9,9,[0-9.]+", "rv,1,9,9,-0.1"), "cases.csv", "-0.1 is not a value of"),
        (replaced("rv,1,9,9,[0-9.]+", "rv,1,9,9,inf"), "cases.csv", "inf is not a value of dice"),
        (replaced("rv,1,9,9,[0-9.]+", "rv,1,9,9,nan"), "cases.csv", "nan is not a value of dice"),
        (replaced("[0-9.]+\n", "inf\n"), "cases.csv", "inf is not a value of hd95_mm"),
        (replaced("[0-9.]+\n", "-1\n"), "cases.csv", "-1 is not a value of hd95_mm"),
        (replaced("rv,1,9", "rv,1,-9"), "cases.csv", "-9 is not a size"),
        (replaced("rv,1,9", "rv,1,1e999"), "cases.csv", "1e999"),
    ],
)
def test_damaged_files_are_named(folder, damage, file, words):
    damage(folder)
    with pytest.raises(CrkdError) as caught:
        read_evaluation(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / file} cannot be used (")
    assert message.endswith("; run crkd evaluate again")
    assert words in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize("version", [None, "crkd evaluation 1", 2])
def test_evaluations_of_other_versions_are_refused(folder, version):
    summary(format=version)(folder)
    with pytest.raises(CrkdError, match=r"summary.json was .* another version .* evaluate again"):
        read_evaluation(folder)


@pytest.mark.parametrize("file", ["summary.json", "cases.csv"])
def test_files_of_two_evaluations_are_refused(write_evaluation, rng, file):
    """What copying one of them leaves, in either order."""
    old, new = (write_evaluation(name, rng.random((3, 2, 2)), CASES) for name in ("old", "new"))
    (new / file).replace(old / file)
    with pytest.raises(CrkdError, match=r"cases.csv cannot be used .* run crkd evaluate again"):
        read_evaluation(old)


def test_a_kill_between_the_files_leaves_no_evaluation(folder, monkeypatch):
    """Stopped where cases.csv is replaced and summary.json is not yet."""
    replace = Path.replace

    def stop_before_the_summary(path, target):
        if target.name == "summary.json":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop_before_the_summary)
    with pytest.raises(KeyboardInterrupt):
        write_files(folder, {}, b"new")
    assert [file.name for file in folder.iterdir()] == ["cases.csv"]


def test_a_failed_write_leaves_both_files(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_files(folder, {"mean": math.nan}, b"new")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (folder / "summary.json").unlink()
    (folder / "summary.json").mkdir()
    with pytest.raises(CrkdError, match=r"cannot write .*: Is a directory"):
        write_files(folder, {}, b"new")
    assert (folder / "cases.csv").read_bytes() == before["cases.csv"]
    assert sorted(file.name for file in folder.iterdir()) == ["cases.csv", "summary.json"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", DEEP, b"\xff", b'{"best": 3, "steps": 1}', b'{"best": {"step": 1e999}}'],
)
def test_a_damaged_metrics_file_is_named(folder, damage):
    (folder.parent / "best.pth").touch()
    (folder.parent / "metrics.json").write_bytes(damage)
    with pytest.raises(CrkdError, match=r"metrics.json cannot be used \(.*\); remove it$"):
        read_evaluation(folder)


@pytest.fixture
def evaluated(make_store, make_checkpoint, tmp_path):
    """evaluated(cases, classes): the folder of an evaluation of cases and classes so named."""

    def run(cases, names):
        store = make_store(groups=dict.fromkeys(cases, 1))
        classes = tuple(ClassInfo(name, (value,)) for value, name in enumerate(names))
        spec = msgspec.structs.replace(store.spec, classes=classes)
        index = msgspec.structs.replace(store.index, spec=spec)
        write_index(store.root, index)
        file = make_checkpoint(spec, FRAME, "runs/toy/best.pth", test=tuple(cases))
        return evaluate([file], tmp_path / "data", lambda line: None, progress).folder

    return run


def test_names_are_read_back_and_are_no_formulas(evaluated, tmp_path):
    lines = "two\nlines | one"
    cases = ["=1+1", "-2", "'=1", "it's", "@x", 'a, "b"', "心"]
    folder = evaluated(cases, ["background", "=cmd|' /C calc'!A0", lines])
    run = read_evaluation(folder)
    assert run.cases == run.groups == cases
    assert run.classes == {"=cmd|' /C calc'!A0": 1, lines: 2}
    write_comparison(compare_runs([run]), tmp_path / "out")
    for file in (folder / "cases.csv", tmp_path / "out" / "scores.csv"):
        with file.open(newline="", encoding="utf-8") as lines:
            cells = [cell for row in csv.reader(lines) for cell in row]
        formulas = [cell for cell in cells if cell[:1] in "=+-@\t\r" and cell]
        assert formulas == []
        assert any(math.isclose(float(cell), 1.0) for cell in cells if cell.isdigit())
    head = (tmp_path / "out" / "comparison.md").read_text().splitlines()[2]
    assert head.endswith(r"| =cmd\|' /C calc'!A0 | two\nlines \| one |")
