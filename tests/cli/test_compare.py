"""`crkd compare` on the command line: tables, files and options."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest

from crkd_cli.config import Frame
from tests.terminal import in_terminal


@pytest.fixture
def runs(cli, make_store, make_checkpoint, tmp_path):
    """Two runs of one method with different weights, evaluated with crkd evaluate."""
    store = make_store(groups={"p0": 2, **{f"p{number}": 1 for number in range(1, 6)}})
    folders = []
    for seed in (1, 2):
        test = tuple(f"p{number}" for number in range(5))
        file = make_checkpoint(
            store.spec,
            Frame(resize=(32, 32)),
            f"runs/toy-{seed}/best.pth",
            ("p5",),
            test=test,
            seed=seed,
        )
        result = cli("evaluate", file, "--data-root", tmp_path / "data", "--quiet")
        assert result.exit_code == 0, result.stderr
        folders.append(file.parent)
    return folders


def test_seeds_of_one_method_form_one_row(cli, runs):
    result = cli("compare", *runs)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "toy, test: 6 cases of 5 patients, strict protocol, 1 labeled" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "Dice %" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    summaries = [
        json.loads((run / "evaluation-strict-test" / "summary.json").read_text()) for run in runs
    ]
    a, b = (100 * summary["mean"]["dice"]["mean"] for summary in summaries)
    assert cells[:4] == [
        "Dice %",
        "supervised",
        "2",
        f"{(a + b) / 2:.1f} ± {abs(a - b) / 2**0.5:.1f}",
    ]
    assert "bootstrap over patients" in " ".join(result.stdout.split())


def test_files_agree_with_stdout(cli, runs, tmp_path):
    result = cli("compare", *runs, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    tree = json.loads(result.stdout)
    assert tree == json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (tmp_path / "out" / "tests.csv").read_text().split() == [
        "metric,first,second,mean,low,high,n,pairs,left_out,p,p_holm"
    ]
    assert [run["seed"] for run in tree["methods"][0]["runs"]] == [1, 2]
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"disc", "mean"}
    for row in rows:
        method = tree["methods"][0]
        expected = method["mean"] if row["class"] == "mean" else method["classes"]["disc"]
        assert row["value"] == ("" if row["class"] == "mean" else "1")
        scores = expected["scores"][row["metric"]]
        assert {key: float(row[key]) for key in scores} == scores
        assert (row["absent"], row["false_positives"]) == ("0", "0")
    text = (tmp_path / "out" / "comparison.md").read_text()
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {7}  # one table, six columns wide: score, method, runs, mean, interval, disc
    assert "| --- | --- | ---: |" in text


def test_methods_are_tested_and_published_rows_are_printed(cli, write_evaluation, tmp_path, rng):
    cases = {name: name for name in "abcdefgh"}
    folders = [
        write_evaluation(method, rng.random((8, 2, 2)) * 0.2 + level, cases, method=method)
        for method, level in (("crkd", 0.7), ("supervised", 0.2), ("unimatch", 0.4))
    ]
    result = cli("compare", *folders, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if "crkd − supervised" in line)
    # Eight patients with the same sign: p = 2 / 2⁸, and three times that by Holm.
    assert [cell.strip() for cell in row.strip("│ ").split("│")][-3:] == ["8", "0.008", "0.023"]
    assert "p (Holm): adjusted over all pairs" in " ".join(result.stdout.split())
    assert "published for acdc with 3 labeled" in result.stdout
    with (tmp_path / "out" / "tests.csv").open(newline="") as file:
        assert [row["metric"] for row in csv.DictReader(file)] == ["dice"] * 3 + ["hd95_mm"] * 3
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        (published,) = [
            row
            for row in csv.DictReader(file)
            if row["method"] == "CRKD" and row["metric"] == "dice" and row["protocol"] == "paper"
        ]
    assert (published["mean"], published["source"]) == ("0.8569", "CRKD README (val + test)")
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (same,) = [row for row in tree["published"] if row["method"] == "CRKD"]
    assert same["dice"] == 0.8569
    assert "Not the same" not in result.stdout


def test_differences_other_than_the_method_are_noted(cli, write_evaluation, rng):
    cases = {name: name for name in "abcdefgh"}
    folders = [
        write_evaluation(
            method,
            rng.random((8, 2, 2)),
            cases,
            method=method,
            checkpoint=f"runs/{method}/{name}.pth",
            config={
                "train": {"seed": 1, "steps": steps, "log_every": steps},
                "methods": {method: {"weight": steps}},
            },
        )
        for method, steps, name in (("crkd", 20, "best"), ("bcp", 40, "last"), ("cps", 40, "best"))
    ]
    text = " ".join(cli("compare", *folders).stdout.split())
    assert "Not the same for all: the checkpoint is best.pth (crkd, cps), last.pth (bcp)." in text
    assert "Not the same for all: train.steps is 20 (crkd), 40 (bcp, cps)." in text
    assert text.count("Not the same") == 2


def test_scores_of_a_run_that_was_trained_further_are_refused(cli, runs):
    (runs[0] / "metrics.json").write_text(json.dumps({"steps": 20, "best": {"step": 17}}))
    result = cli("compare", *runs)
    assert result.exit_code == 1
    assert "best.pth is at step 17, but" in result.stderr
    assert "of step 10; run crkd evaluate again" in result.stderr
    # Extended, and interrupted before the end.
    (runs[0] / "metrics.json").write_text(json.dumps({"steps": 9, "best": {"step": 7}}))
    assert cli("compare", *runs).exit_code == 0
    (runs[0] / "metrics.json").write_text("{")
    result = cli("compare", *runs)
    assert result.exit_code == 1
    assert "metrics.json cannot be used" in result.stderr


@pytest.mark.parametrize("options", [["--protocol", "paper"], ["--part", "val"]])
def test_options_must_not_contradict_an_evaluation_folder(cli, runs, options):
    folder = runs[0] / "evaluation-strict-test"
    assert cli("compare", folder, "--protocol", "strict", "--part", "test").exit_code == 0
    result = cli("compare", folder, *options)
    assert result.exit_code == 2
    message = "evaluation-strict-test is a strict/test evaluation; drop --protocol/--part"
    assert message in result.stderr


def test_quiet_prints_nothing(cli, runs):
    result = cli("compare", *runs, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_piped_output_is_plain(runs):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")
    }
    command = [sys.executable, "-m", "crkd_cli", "compare", *map(str, runs)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in result.stdout
    assert "…" not in result.stdout


def test_a_hundred_columns_are_enough(cli, write_evaluation, rng):
    """Three seeds of four methods, three classes, large distances."""
    cases = {name: name for name in "abcdefgh"}
    folders = [
        write_evaluation(
            f"{method}-{seed}",
            rng.random((8, 3, 4)) * [0.2, 0.2, 300, 300] + [0.6, 0.6, 100, 100],
            cases,
            ("RV", "Myo", "LV"),
            ("dice", "nsd_2mm", "hd95_mm", "assd_mm"),
            method=method,
            seed=seed,
        )
        for method in ("crkd", "supervised", "unimatch", "mean_teacher")
        for seed in (1, 2, 3)
    ]
    result = cli("compare", *folders)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
@pytest.mark.parametrize("columns", [80, pytest.param(100, marks=pytest.mark.slow)])
def test_a_narrow_terminal_shows_all_digits(write_evaluation, rng, columns):
    """Two settings of a method with long names; 80 columns leave no room for the classes."""
    cases = {name: name for name in "abcdefgh"}
    folders = [
        write_evaluation(
            f"{name}-seed1",
            rng.random((8, 3, 2)),
            cases,
            ("right ventricle", "myocardium", "left ventricle"),
            config={"methods": {"crkd": {"pixel_weight": weight}}},
        )
        for name, weight in (("with-all-its-terms", 1.0), ("without-the-pixels", 0.0))
    ]
    code, text = in_terminal("stdout", columns, "compare", *folders)
    assert code == 0
    assert "…" not in text
    intervals = re.findall(r"\[-?\d+\.\d+, -?\d+\.\d+\]", text)
    assert len(intervals) == 2 * 2 + 2  # of the scores and of the differences
    assert ("--out writes the scores of every class" in text) == (columns < 100)


def test_wrong_usage(cli, runs, write_evaluation, tmp_path, rng):
    def refused(*args):
        result = cli("compare", *args)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line

    other = write_evaluation("other", rng.random((2, 2, 2)), {"a": "a", "b": "b"})
    assert "cannot be compared; they differ in dataset (toy and acdc)" in refused(runs[0], other)
    assert f"run: crkd evaluate {runs[0]}/best.pth --protocol paper" in refused(
        runs[0], "--protocol", "paper"
    )
    assert "neither a run folder" in refused(tmp_path)
    assert cli("compare").exit_code == 2
    # A missing path is not wrong usage.
    assert cli("compare", tmp_path / "absent").exit_code == 1
    again = cli("compare", runs[0], runs[0] / "evaluation-strict-test", "--json")
    assert (
        len(json.loads(again.stdout)["methods"][0]["runs"]) == 1
    )  # the same evaluation is counted once
