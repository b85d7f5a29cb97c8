"""The speed benchmark at a tiny size: every figure is there, and the page shows it."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import performance_page, speed
from benchmarks.common import write_json
from benchmarks.inputs import Sizes, synthetic
from crkd_cli.methods import METHODS

TINY = Sizes((3, 40, 36), (40, 36, 24), (32, 32), 2, (32, 32, 16), (16, 16, 8), 2)
PATCH = (32, 32, 16)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # MONAI's own warnings
def test_every_row_of_the_speed_benchmark_is_on_the_page(tmp_path, monkeypatch):
    pytest.importorskip("monai")
    monkeypatch.setattr(speed, "SMALL", PATCH)
    record = speed.measure(synthetic(tmp_path, TINY), speed.speeds)
    write_json(record, tmp_path / "speed-here.json")
    (tmp_path / "performance.md").write_text("<!-- speed -->\n", encoding="utf-8")
    page = performance_page.page(tmp_path)
    assert len(record["rows"]) == 9
    for row in record["rows"]:
        assert row["work"] in page
        assert row.get("value", 1) >= 0
        for key in ("baseline_s", "crkd_s", "baseline_gb", "crkd_gb"):
            assert row.get(key, 1) > 0


@pytest.mark.slow
def test_costs_are_multiples_of_supervised(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SMALL", PATCH)
    monkeypatch.setattr(METHODS, "names", lambda: ["cps", "supervised"])
    rows = list(speed.costs(synthetic(tmp_path, dataclasses.replace(TINY, images=4))))
    names = [(row["dataset"], row["method"]) for row in rows]
    assert names == [(d, m) for d in ("acdc", "la") for m in ("supervised", "cps")]
    for base, other in (rows[:2], rows[2:]):
        assert base["step"] == base["memory"] == 1.0
        assert other["step"] == pytest.approx(other["step_s"] / base["step_s"])
        assert other["memory"] == pytest.approx(other["memory_gb"] / base["memory_gb"])


@pytest.mark.slow
def test_augmentation_is_timed_beside_a_step(tmp_path, monkeypatch):
    sizes = (("acdc", (32, 32), 4), ("la", PATCH, 2))
    monkeypatch.setattr(speed, "AUGMENTED", sizes)
    record = speed.measure(synthetic(tmp_path, TINY), speed.augmentation)
    assert [(row["dataset"], row["method"]) for row in record["rows"]] == [
        (name, method) for name, *_ in sizes for method in ("supervised", "crkd")
    ]
    for row in record["rows"]:
        assert 0 < row["strong_s"] < row["step_s"]
        expected = row["strong_s"] / (row["step_s"] + row["strong_s"])
        assert row["share"] == pytest.approx(expected)
        assert row["more"] < row["share"]
    text = performance_page.AUGMENTATION_PAGE.read_text(encoding="utf-8")
    page = performance_page.augmentation_page(text, record | {"file": "augment-here.json"})
    assert page.count("\n| LA 32×32×16, 2 + 2 |") == 2


def test_peak_memory_is_that_of_the_work():
    def work():
        np.ones(25_000_000)  # 200 MB

    before = speed.peak_gb(lambda: None)
    if math.isnan(before):
        pytest.skip("the kernel does not report the peak memory of this process")
    assert 0.19 < speed.peak_gb(work) - before < 0.26


def test_durations_have_three_figures():
    durations = [performance_page.duration(seconds) for seconds in (123.4, 1.0, 0.0456, 0.6)]
    assert durations == ["123 s", "1.00 s", "45.6 ms", "600 ms"]


def test_the_committed_pages_are_up_to_date():
    command = "run: python -m benchmarks.performance_page"
    page = performance_page.page(performance_page.RESULTS)
    assert performance_page.PAGE.read_text(encoding="utf-8") == page, command
    costs = performance_page.read(performance_page.RESULTS, "methods")[0]
    text = performance_page.METHODS_PAGE.read_text(encoding="utf-8")
    assert performance_page.costs_table(costs) in text
    assert performance_page.methods_page(text, costs) == text, command
    text = performance_page.AUGMENTATION_PAGE.read_text(encoding="utf-8")
    (record,) = performance_page.read(performance_page.RESULTS, "augment")
    assert performance_page.augmentation_page(text, record) == text, command
    assert performance_page.COSTS.read_text(encoding="utf-8") == performance_page.costs_yaml(costs)
