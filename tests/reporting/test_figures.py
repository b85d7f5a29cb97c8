"""Figures: what the SVG images draw, and how more methods than colors are told apart."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest

from crkd_cli.evaluation.results import read_evaluation
from crkd_cli.reporting import curves
from crkd_cli.reporting.compare import compare_runs
from crkd_cli.reporting.curves import draw_curves
from crkd_cli.reporting.figures import COLORS, case_scores, color, is_dashed, learning_curves


@pytest.fixture
def compared(write_evaluation, rng):
    """compared("a", "b"): a comparison of methods with logs of two steps."""

    def make(*methods):
        runs = []
        for method in methods:
            cases = {"x": "x", "y": "y", "z": "z"}
            folder = write_evaluation(method, rng.random((3, 2, 2)), cases, method=method)
            (folder.parent / "best.pth").touch()
            lines = [json.dumps({"step": step, "total": 1 / step}) for step in (1, 2)]
            (folder.parent / "log.jsonl").write_text("\n".join(lines) + "\n")
            runs.append(read_evaluation(folder))
        return compare_runs(runs)

    return make


def svg(figure) -> str:
    return base64.b64decode(figure.source.partition(",")[2]).decode()


def test_every_method_has_a_row_of_dots_in_its_color(compared):
    dice, distance = case_scores(compared("crkd", "supervised"))
    assert (dice.title, distance.title) == ("Dice %", "HD95 mm")
    for figure in (dice, distance):
        for i, method in enumerate(("crkd", "supervised")):
            assert f">{method}</text>" in svg(figure)
            assert svg(figure).count(color(i)) >= 3  # cases


def test_undefined_scores_are_not_drawn(compared):
    comparison = compared("crkd", "supervised")
    for entry in comparison.entries:
        entry.scores[:] = np.nan
        entry.mean[0] = replace(entry.mean[0], mean=np.nan, low=np.nan, high=np.nan)
        log = entry.runs[0].run / "log.jsonl"
        lines = [{"step": 1, "val/dice": None}, {"step": 2, "val/dice": None}, {"step": 3, "x": 1}]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    dice, _ = case_scores(comparison)
    assert dice.text == "Dice % of every case; crkd: mean –; supervised: mean –"
    assert learning_curves(comparison) == []
    draw_curves(comparison.entries[0].runs[0].run)
    assert (comparison.entries[0].runs[0].run / "curves.png").stat().st_size > 1000

    lines[1]["val/dice"] = 0.5
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (figure,) = learning_curves(comparison)
    assert figure.text == "Dice % on the validation cases over training steps: supervised"


def test_curves_of_many_classes_fit_into_the_picture(tmp_path):
    line = {"step": 1, "total": 0.5} | {f"share_{k}": 0.01 * k for k in range(1, 100)}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    draw_curves(tmp_path)  # a warning of the layout is an error
    assert (tmp_path / "curves.png").is_file()


def test_the_ticks_of_curves_are_plain_numbers(tmp_path, monkeypatch):
    """Formulas such as $10^{-1}$ would be printed as they are."""
    figures = []
    monkeypatch.setattr(curves, "_save", lambda figure, file: figures.append(figure))
    values = ({"step": step, "total": 10.0**-step, "kept": 0.1 * step} for step in (1, 2, 3))
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in values))
    draw_curves(tmp_path)
    for axes in figures[0].axes:
        labels = [text.get_text() for text in axes.get_yticklabels(which="both")]
        shown = [label for label in labels if label]
        assert len(shown) >= 2
        assert all(float(label) > 0 for label in shown)


def test_more_methods_than_colors_are_told_apart_by_dashes(compared):
    methods = [f"m{i}" for i in range(len(COLORS) + 1)]
    (loss,) = learning_curves(compared(*methods))
    assert loss.text == f"training loss over training steps: {', '.join(methods)}"
    assert [is_dashed(i) for i in range(len(methods))] == [False] * len(COLORS) + [True]
    curve_lines = [
        line for line in svg(loss).splitlines() if color(0) in line and "stroke-width" in line
    ]
    assert sum("stroke-dasharray" in line for line in curve_lines) == 1


def test_the_same_comparison_gives_the_same_images(compared):
    comparison = compared("crkd", "a $name$ <&> 心")
    assert case_scores(comparison) == case_scores(comparison)
    assert learning_curves(comparison) == learning_curves(comparison)
