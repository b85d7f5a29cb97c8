"""The benchmark itself: that it counts right, that its rows hold together, and that its page is what its files give."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import performance_page, run
from benchmarks.run import ROWS, measure
from benchmarks.speed.inputs import Sizes, synthetic
from benchmarks.speed.row import Row, duration, read, timed
from benchmarks.speed.timing import Patience, Sample, forget_peak, in_turn, peak_bytes

TINY = Sizes(
    acdc=(4, 40, 36),
    la=(40, 36, 24),
    image=(32, 32),
    images=2,
    patch=(16, 16, 16),
    stride=(8, 8, 4),
    few_images=1,
    small_patch=(16, 16, 16),
    training_patch=(16, 16, 16),
    training_steps=2,
    batches=(1, 2),
    sides=(32, 48),
    cubes=(24, 32),
    slow_cubes=(24,),
    case_cubes=(24,),
    cases=(1, 10),
    seconds=0.0,
    compiler="aot_eager",
)


def test_ways_take_turns_and_the_first_round_does_not_count() -> None:
    called: list[str] = []
    works = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    samples = in_turn(works, Patience(0.0, least=2))
    assert called == ["a", "b"] * 3
    assert [len(sample.seconds) for sample in samples.values()] == [2, 2]


def test_patience_ends_at_the_most() -> None:
    patience = Patience(60.0, least=1, most=3)
    assert [patience.more(done) for done in (0, 1, 2, 3)] == [True, True, True, False]


def test_peak_memory_is_that_of_the_work() -> None:
    def work() -> None:
        np.ones(25_000_000)  # 200 MB

    forget_peak()
    before = peak_bytes()
    if before is None:
        pytest.skip("the kernel does not tell this process's peak memory")
    after = in_turn({"work": work}, Patience(0.0, least=1))["work"].peak
    assert after is not None
    assert 190e6 < after - before < 260e6


def test_a_row_knows_its_ratio_and_whether_its_target_is_met() -> None:
    row = timed(
        Row("x", "target", "work", target=4.0), Sample([9.0, 8.0, 1.0]), Sample([2.0, 1.0, 30.0])
    )
    assert (row.ratio, row.met) == (4.0, True)
    assert row.cells() == ["8.00 s", "2.00 s", "4.0×", "≥ 4×", "yes"]
    waits = Row("w", "target", "waiting", value=2.5, unit="%", target=2.0)
    assert (waits.ratio, waits.met) == (None, False)
    assert Row("y", "peer", "alone", crkd_s=1.0).met is None
    assert read(json.loads(json.dumps(row.tree()))) == row


@pytest.mark.parametrize(
    ("seconds", "text"), [(123.4, "123 s"), (1.0, "1.00 s"), (0.0456, "45.6 ms"), (0.6, "600 ms")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def check(record: dict[str, object], folder: Path) -> None:
    """Every row of a fresh record is complete, and the page shows it."""
    (folder / "speed-cpu-here.json").write_text(json.dumps(record), encoding="utf-8")
    page = performance_page.page(folder)
    for row in map(read, record["rows"]):  # type: ignore[call-overload]
        assert row.work
        assert row.crkd_s or row.value is not None or row.note.endswith("not installed")
        assert row.name.startswith("grow-") or row.work in page, row.name
        if shares := row.detail.get("shares"):
            assert sum(shares.values()) == pytest.approx(1.0)
            assert min(shares.values()) > 0.0
            assert row.detail["flops"] > 1e6
    assert all(
        one.get("gflops_per_s", 0.0) > 0.0 or one["gb_per_s"] > 0.0 for one in record["bound"]
    )  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the other libraries' warnings are theirs
def test_all_rows(tmp_path: Path) -> None:
    record = measure(list(ROWS), synthetic(tmp_path, TINY), "here")
    assert [row["name"] for row in record["rows"]][:3] == [
        "step-acdc",
        "waiting-acdc",
        "step-acdc-dense",
    ]
    check(record, tmp_path)


def test_page_is_what_the_speed_files_give() -> None:
    written = performance_page.PAGE.read_text(encoding="utf-8")
    assert written == performance_page.page(performance_page.RESULTS), (
        "run: python -m benchmarks.performance_page"
    )


def test_rows_measured_later_replace_those_of_a_file_or_follow_them() -> None:
    old = {
        "rows": [{"work": "a", "crkd_s": 1.0}, {"work": "b", "crkd_s": 2.0}],
        "note": "",
        "commit": "old",
    }
    rows = [{"work": "c", "crkd_s": 4.0}, {"work": "b", "crkd_s": 3.0}]
    new = {"rows": rows, "note": "", "commit": "new", "command": "run --rows b", "date": "today"}
    record = run.updated(old, new)
    assert [row["crkd_s"] for row in record["rows"]] == [1.0, 3.0, 4.0]
    assert record["commit"] == "old"
    assert record["note"] == "Some rows were measured later: `run --rows b`, commit new, today."
