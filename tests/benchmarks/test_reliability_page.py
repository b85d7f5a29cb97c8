"""The page on reliability has the figures of the records, compared with sums made by hand."""

from pathlib import Path

from benchmarks import reliability_page
from benchmarks.common import write_json

FACTS = {
    "command": "python -m x",
    "commit": "abc1234",
    "date": "2026-01-02",
    "machine": "AMD EPYC, 2 cores",
    "versions": {"torch": "2.13.0"},
}
MARKS = "a\n<!-- inputs -->\nold\n<!-- /inputs -->\nb\n<!-- races -->\n<!-- /races -->\nc\n"


def test_the_committed_page_is_up_to_date():
    text = reliability_page.PAGE.read_text(encoding="utf-8")
    made = reliability_page.page(text, reliability_page.RESULTS)
    assert made == text, "run: python -m benchmarks.reliability_page"


def test_tables_have_the_figures_of_the_records(tmp_path: Path) -> None:
    rows = [
        {"what": "pictures", "inputs": 1200, "faults": 1},
        {"what": "splits", "inputs": 34, "faults": 2},
    ]
    write_json({**FACTS, "rows": rows}, tmp_path / "reliability-inputs.json")
    race = {"command": "train", "trials": 20, "started": 47, "stopped": 30, "faults": 0}
    write_json({**FACTS, "rows": [race]}, tmp_path / "reliability-races.json")
    page = reliability_page.page(MARKS, tmp_path)
    assert "| pictures | 1,200 | 1 |" in page
    assert "| all | 1,234 | 3 |" in page
    assert "| `train` | 20 | 47 | 30 | 0 |" in page
    assert page.startswith("a\n<!-- inputs -->\n| damaged |")
    assert "old" not in page
    assert page.count("commit abc1234, 2026-01-02, AMD EPYC, 2 cores, torch 2.13.0;") == 2
