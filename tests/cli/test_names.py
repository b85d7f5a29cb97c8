"""Names are data: hostile names of cases, patients, classes and runs, through all commands."""

import base64
import csv
import json
import re
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image

from crkd_cli.cli.console import plain_text, show
from crkd_cli.evaluation.results import read_evaluation
from crkd_cli.reporting.tables import Cell, Table

CASES = [
    "[red]x",
    "[",
    "=cmd|' C calc'!A0",
    "-rf",
    "+1",
    "@x",
    "'=1",
    "a\nerror: b",
    "tab\tx",
    "\x1b[2Jesc",
    "gpj.\u202etxt",
    "quote\"'",
    "sp ace",
    "CON",
    "é" * 60,
    "e\u0301x",  # é in two characters
    "$\\alpha$ $x",
    "%s{0}",
    "<script>alert(1)",
    "&amp;",
    "p" * 240,
    "a..b",
    "1",
    "null",
    "~",
    "back\\slash",
    "2024-01-31",
    "x,y;z",
    "#c",
    "true",
]
PATIENTS = {"1": "[/]", "null": "=1+1", "~": "a/../b", "#c": "\x1b]0;title\x07", "true": "null"}
CLASS = "[/]<b>$x$|\x1b[31m"
SETTINGS = [
    "train.steps=2",
    "data.frame.resize=[32,32]",
    "model.widths=[4,4,4,4,4]",
    "data.labeled_batch_size=2",
    "train.device=cpu",
]


@pytest.fixture
def source(tmp_path, rng, monkeypatch):
    """A folder with a picture and a label map per case, patients.csv, and the class's name."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "src"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name in CASES:
        label = np.zeros((32, 32), np.uint8)
        label[8:20, 8:20] = 1
        image = rng.integers(0, 200, (32, 32), dtype=np.uint8) + 50 * label
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(label).save(folder / "labels" / f"{name}.png")
    with (folder / "patients.csv").open("w", newline="") as file:
        rows = [(f"{name}.png", PATIENTS.get(name, name)) for name in CASES]
        csv.writer(file).writerows([("image", "patient"), *rows])
    (folder / "dataset.yaml").write_text(f"classes: {json.dumps({CLASS: 1})}")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_names_go_through_all_commands(cli, source):
    def run(*words):
        result = cli(*words)
        assert result.exit_code == 0, result.stderr
        assert all(line.isprintable() for line in result.output.splitlines()), result.output
        assert not [line for line in result.output.splitlines() if line.startswith("error: ")]
        return result.stdout

    run("prepare-data", "2024", "--source", source)
    options = ["--labeled", "4", "--val", "10%", "--test", "70%"]
    tree = json.loads(run("make-splits", "2024", *options, "--json"))
    assert set(tree["labeled"] + tree["unlabeled"] + tree["val"] + tree["test"]) == {
        PATIENTS.get(name, name) for name in CASES
    }
    assert "[red]x" in run("make-splits", "2024", *options) + str(tree)

    # A run folder that is not UTF-8, and one whose name does more on a screen than in a list.
    runs = [Path("runs/caf\udce9"), Path("runs/=[b]\x1b[2J\nx$y$")]
    for seed, folder in enumerate(runs, start=1):
        settings = [word for pair in (*SETTINGS, f"train.seed={seed}") for word in ("--set", pair)]
        options = ["--labeled", "4", "--method", "supervised", "--out", folder]
        run("train", "--dataset", "2024", *options, *settings)
        run("evaluate", folder)
        evaluation = read_evaluation(folder / "evaluation-strict-test")
        assert set(evaluation.groups) == set(tree["test"])
        assert list(evaluation.classes) == [CLASS]
        check_csv(folder / "evaluation-strict-test" / "cases.csv")

    run("predict", source / "images", "--checkpoint", runs[0], "--out", "masks", "--overlay")
    masks = {file.name for file in Path("masks").glob("*.png")}
    assert masks == {f"{name}.png" for name in CASES}
    assert {file.name for file in Path("masks/overlays").glob("*.png")} == masks

    run("compare", *runs, "--out", "table", "--report", "report")
    for file in ("scores.csv", "tests.csv"):
        check_csv(Path("table") / file)
    check_page(Path("report/index.html").read_text(encoding="utf-8"))
    text = Path("table/comparison.md").read_text(encoding="utf-8")
    assert "[/]\\<b>$x$\\|\\x1b[31m" in text
    assert "\x1b" not in text


def check_csv(file):
    """No cell begins like a formula; numbers may begin with a minus."""
    with file.open(newline="", encoding="utf-8") as lines:
        cells = [cell for row in csv.reader(lines) for cell in row]
    formulas = [cell for cell in cells if re.match(r"[=+@\t\r]|-(?![\d.])", cell)]
    assert not formulas


def check_page(page):
    """No markup of a name, nothing invisible, and figures that are well-formed."""
    assert "<script" not in page
    assert "<b>" not in page
    assert all(char.isprintable() or char == "\n" for char in page)
    assert "[/]&lt;b&gt;$x$|\\x1b[31m" in page
    figures = re.findall(r'data:image/svg\+xml;base64,([^"]+)', page)
    assert figures
    for figure in figures:
        minidom.parseString(base64.b64decode(figure))


@pytest.mark.parametrize("name", ["[/]", "[/red]", "[link=x]y[/link]", ":smile:", *CASES[7:12]])
def test_tables_show_names_as_they_are(capsys, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    show(Table(name, [name], 1, [[[Cell(name)]]], [name, name]))
    shown = capsys.readouterr().out
    assert shown.count(plain_text(name).plain) == 5
    assert all(line.isprintable() for line in shown.splitlines())
